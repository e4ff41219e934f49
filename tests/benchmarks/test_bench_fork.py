"""The benchmark of continuations on a tiny model."""

from __future__ import annotations

import pytest
import torch

from ardiff.ar.block_pool import BlockPool
from benchmarks import _harness, bench_fork

QUICK = _harness.Settings(rounds=2, seconds=1e-4)
CASE = "fork/tiny/prompt=40/copies=4/float32"  # 2 blocks of 16 and a half
METRICS = ("begin-time", "append-time")


def test_both_ways_draw_the_same_and_the_shared_one_takes_less():
    rows = _harness.gated(bench_fork.run(CASE, QUICK))
    found = {(row.rival, row.metric): row for row in rows}
    assert found["ardiff", _harness.CORRECTNESS].value <= 1
    blocks = {"ardiff": 2 + 4, "separate": 3 * 4}
    for way, count in blocks.items():
        # keys and values of 2 heads of 32 channels, float32
        assert found[way, "memory"].value == count * 2 * 2 * 16 * 32 * 4 / 2**20
        assert all(found[way, metric].value > 0 for metric in METRICS)
    assert found["separate", "memory-ratio"].value == 2
    assert {("separate", f"{name}-speedup") for name in ("begin", "append")} < set(found)


def test_the_caches_that_are_timed_hold_the_same():
    work = bench_fork._Work("tiny", 40, 4)
    shared, separate = (bench_fork._CacheRows(work, share) for share in (True, False))
    expected = separate.append()
    assert torch.allclose(shared.append(), expected, atol=1e-5)
    assert torch.allclose(separate.append(), expected, atol=1e-5)  # however often it is called
    assert shared.cache.plan.blocks == 2 + 4 and separate.cache.plan.blocks == 3 * 4


def test_a_cache_without_copies_withholds_the_figures(monkeypatch):
    monkeypatch.setattr(BlockPool, "shared", lambda self, written: [])
    rows = _harness.gated(bench_fork.run(CASE, QUICK))
    assert len(rows) == 1 and rows[0].value > 1


def test_the_case_that_is_run():
    assert [bench_fork.parse(case) for case in bench_fork.CASES] == [("mar-b", 1024, 16)]


@pytest.mark.parametrize(
    "case",
    [
        "fork/mar-b",
        "fork/mar-x/prompt=9/copies=2/float32",
        "fork/tiny/prompt=0/copies=2/float32",
        "fork/tiny/prompt=9/copies=1/float32",
        "fork/tiny/prompt=9/copies=2/half",
    ],
)
def test_cases_of_another_form_are_named(case):
    with pytest.raises(ValueError, match="expected fork/<model>/prompt=<tokens>/copies=<N>/float"):
        bench_fork.parse(case)
