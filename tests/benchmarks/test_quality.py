"""Quality for calls: the bounds of `ardiff bench quality`, pooled over nine mixtures.

Distances are those of fixed seeds, and noise is addressed, so that a run repeats. Over six seeds of
the noise the pooled ratios had standard deviations of .01 to .06, and none was past its bound.
"""

from __future__ import annotations

import pytest
import torch

from ardiff.solvers import SOLVERS
from ardiff.study.intervals import geometric_mean
from benchmarks import bench_quality


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def available(bounds):
    return [bound for bound in bounds if bound[0] in SOLVERS]


@pytest.mark.parametrize(
    ("solver", "rival", "calls", "bound"), available(bench_quality.BOUNDS), ids=str
)
def test_pooled_ratio(solver, rival, calls, bound):
    ours, made = bench_quality.distances(solver, calls, seed=0)
    theirs, rival_made = bench_quality.distances(rival, calls, seed=0)
    assert made <= calls and rival_made <= calls
    ratio = geometric_mean(ours) / geometric_mean(theirs)
    assert ratio <= bound
    floor = geometric_mean([target.floor for target in bench_quality.targets()])
    assert floor < min(geometric_mean(ours), geometric_mean(theirs))


def test_negative_control():
    """DDPM does not meet the bound that rtk-harmonic does, nor with half the calls."""
    theirs, _ = bench_quality.distances("ddpm", 16, seed=0)
    more, _ = bench_quality.distances("ddpm", 32, seed=0)
    assert geometric_mean(more) / geometric_mean(theirs) > 0.5
