"""The benchmark of MAR's loop on a tiny head."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from benchmarks import _harness, _rivals, bench_mar  # noqa: E402
from tests._support.fake_torchao import quantized_by_rounding

QUICK = _harness.Settings(rounds=2, seconds=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_case_has_its_rows(dtype, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda net, **options: net)
    quantized_by_rounding(monkeypatch)
    rows = _harness.gated(bench_mar.run(f"tiny/N=3/{dtype}", QUICK))
    assert not _harness.failures([asdict(row) for row in rows])
    found = {(row.rival, row.metric) for row in rows}
    rivals = set(_rivals.of(torch.nn.Linear(1, 1), dtype, "cpu"))
    assert {"float32": "eager", "bfloat16": "eager-bfloat16", "int8": "torchao-int8"}[
        dtype
    ] in rivals
    for suffix in ("", "-guided"):
        assert {rival for rival, metric in found if metric == f"speedup{suffix}"} == rivals
        assert ("ardiff", f"time{suffix}") in found
    errors = {row.rival: row.value for row in rows if row.metric == "error"}
    for rival in rivals:
        assert (errors[rival] < 1e-5) == (_rivals.dtype_of(rival) == "float32")
    checks = [row for row in rows if row.metric == _harness.CORRECTNESS and row.rival == "ardiff"]
    assert len(checks) == 2 and all(row.value > 0 for row in checks)


def test_a_loop_is_the_plain_one_around_its_head():
    """Float32 state and noise, whatever the head takes and gives."""
    torch.manual_seed(0)
    loss = bench_mar.randomise(bench_mar.DiffLoss(8, 12, 2, 32, 5))
    z, noise = torch.randn(4, 12), torch.randn(6, 4, 8)
    seen = []

    def rounded(x, t, z):
        seen.append((x.dtype, z.dtype))
        return loss.net(x.float(), t, z.float()).bfloat16()

    found = bench_mar.in_dtype(loss, _rivals.Rival(rounded, torch.bfloat16))(z, 1.0, 1.0, noise)
    assert seen == [(torch.bfloat16, torch.bfloat16)] * 5 and found.dtype == torch.float32
    exact = bench_mar.in_dtype(loss, _rivals.Rival(loss.net, torch.float32))(z, 1.0, 1.0, noise)
    assert torch.equal(exact, loss.sample(z, 1.0, 1.0, noise)) and not torch.equal(exact, found)


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
