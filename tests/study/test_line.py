"""The mixture on a line: its bins, its model, and the distances from it.

KL between 64 bins is chi-square with 63 degrees of freedom over 2 n, and more than 100 from its
mean, nine deviations, with a chance below 1e-10.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ardiff.study import line
from ardiff.tables.paths import get_path


def test_the_bins_hold_equal_masses_and_the_distance_is_total_variation():
    edges = line.inner_edges()
    mass = np.diff(line.distribution(edges), prepend=0, append=1)
    np.testing.assert_allclose(mass, 1 / line.BINS, atol=1e-12)
    middles = np.concatenate([[edges[0] - 1], (edges[1:] + edges[:-1]) / 2, [edges[-1] + 1]])
    half = torch.tensor(middles[: line.BINS // 2])
    assert math.isclose(line.total_variation(half), 0.5)
    assert line.total_variation(torch.tensor(middles)) < 1e-12


@pytest.mark.parametrize("level", [1e-3, 0.2, 2.5])
def test_the_fast_model_is_that_of_the_mixture(level):
    x, fast = torch.linspace(-2.5, 2.5, 101)[:, None], line.Line()
    at, path = torch.full((101,), level), get_path(line.PATH)
    wanted = line.target().model(line.PATH, line.PREDICTION)(x, at, None)
    torch.testing.assert_close(fast.model(x, at, None), wanted, atol=2e-5, rtol=0)
    both = torch.cat([x, x.flip(0)], 1)  # coordinates are independent
    assert torch.equal(fast.model(both, at, None)[:, 1:], fast.model(x.flip(0), at, None))
    energies = fast.energy(x, at, None), fast.energy(x.flip(0), at, None)
    torch.testing.assert_close(fast.energy(both, at, None), sum(energies))
    alpha, sigma = (torch.tensor([f(level)]) for f in (path.alpha, path.sigma))
    density = line.target().log_density(x, alpha, sigma)
    found = fast.energy(x, at, None).double() + density
    assert float((found - found[0]).abs().max() / density.abs().max()) < 1e-6


def test_kl_on_a_line_of_exact_draws_is_none():
    x = line.target().sample(50_000, torch.Generator().manual_seed(3))
    assert abs(line.kl_of_bins(x)) < 100 / (2 * 50_000)
    assert line.kl_of_bins(1.05 * x) > 100 / (2 * 50_000)
    low = x[x[:, 0] < line.inner_edges()[line.BINS // 2 - 1]]  # the lower half of the bins
    assert line.kl_of_bins(low) == pytest.approx(math.log(2), abs=0.01)
