"""The benchmark of MAR's loop on a tiny head."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from benchmarks import _harness, bench_mar  # noqa: E402

QUICK = _harness.Settings(rounds=2, seconds=1e-4)


def test_a_case_has_its_rows(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda net, **options: net)
    rows = _harness.gated(bench_mar.run("tiny/N=3/float32", QUICK))
    assert not _harness.failures([asdict(row) for row in rows])
    found = {(row.rival, row.metric) for row in rows}
    for suffix in ("", "-guided"):
        assert {("eager", f"speedup{suffix}"), ("compile", f"speedup{suffix}")} <= found
        assert ("ardiff", f"time{suffix}") in found
    checks = [row for row in rows if row.metric == _harness.CORRECTNESS]
    assert len(checks) == 2 and all(row.value > 0 for row in checks)


def test_wrong_samples_withhold_the_figures(monkeypatch):
    sample = bench_mar.mar.MARSampler.sample
    monkeypatch.setattr(
        bench_mar.mar.MARSampler, "sample", lambda self, *a, **k: sample(self, *a, **k) * 1.001
    )
    rows = _harness.gated(bench_mar.run("tiny/N=3/float32", QUICK))
    assert rows[-1].value > 1 and all("speedup" not in row.metric for row in rows)


@pytest.mark.parametrize("case", ["mar-b", "mar-x/N=1/float32", "mar-b/N=0/int8", "mar-b/N=1/half"])
def test_cases_of_another_form_are_named(case):
    with pytest.raises(ValueError, match="expected <model>/N=<tokens>/<dtype> with a model of mar"):
        bench_mar.parse(case)
