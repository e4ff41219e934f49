"""The benchmark of the fused schedulers runs at [1, 4, 64, 64] and finds them correct;
`ardiff bench integrations` says how many times faster than diffusers' a step is."""

from __future__ import annotations

import pytest

from benchmarks import _harness, bench_diffusers

QUICK = _harness.Settings(rounds=2, seconds=1e-4)


@pytest.mark.parametrize("case", bench_diffusers.CASES)
def test_it_is_correct_and_reports_a_speedup(case):
    rows = _harness.gated(bench_diffusers.run(case, QUICK))
    assert rows[0].metric == _harness.CORRECTNESS
    assert _harness.failures([vars(row) for row in rows]) == []
    assert [row.rival for row in rows if row.metric == "speedup"] == ["diffusers"]


def test_it_would_notice_a_wrong_step(monkeypatch):
    stock = bench_diffusers.model
    calls = iter(range(10**6))
    monkeypatch.setattr(bench_diffusers, "model", lambda x, t: stock(x, t) + 1e-3 * next(calls))
    rows = _harness.gated(bench_diffusers.run(bench_diffusers.CASES[0], QUICK))
    assert rows[-1].value > 1 and all(row.metric != "speedup" for row in rows)
