"""The benchmark of VibeVoice's loop on a tiny head."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch

from benchmarks import _harness, _rivals, bench_vibevoice  # noqa: E402
from tests._support.fake_torchao import quantized_by_rounding

QUICK = _harness.Settings(rounds=2, seconds=1e-4, rivals=["eager"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_case_has_its_rows(dtype, monkeypatch):
    """Rivals in its dtype, whose loops err as their dtype does."""
    monkeypatch.setattr(torch, "compile", lambda head, **options: head)
    quantized_by_rounding(monkeypatch)
    forms = {"float32": ["eager", "compile"], "bfloat16": ["eager", "compile-bfloat16"]}
    settings = replace(QUICK, rivals=forms.get(dtype, ["eager", "compile-torchao-int8"]))
    rows = _harness.gated(bench_vibevoice.run(f"tiny/N=3/{dtype}", settings))
    assert not _harness.failures([asdict(row) for row in rows])
    found = {(row.rival, row.metric) for row in rows}
    expected = {
        "float32": {"eager", "compile"},
        "bfloat16": {"eager-float32", "eager-bfloat16", "compile-bfloat16"},
        "int8": {"eager-float32", "eager-bfloat16", "compile-torchao-int8"},
    }[dtype]
    assert {rival for rival, metric in found if metric == "speedup"} == expected
    assert {("ardiff", "throughput"), ("ardiff", "error")} <= found
    errors = {row.rival: row.value for row in rows if row.metric == "error"}
    for rival in expected:
        assert (errors[rival] < 1e-5) == (_rivals.dtype_of(rival) == "float32")
    checks = {row.rival: row.value for row in rows if row.metric == _harness.CORRECTNESS}
    assert set(checks) == {"ardiff", *expected} and checks["ardiff"] > 0


def test_wrong_latents_withhold_the_figures(monkeypatch):
    monkeypatch.setattr(bench_vibevoice, "loop", lambda model, conditions: lambda: torch.randn(9))
    rows = _harness.gated(bench_vibevoice.run("tiny/N=3/float32", QUICK))
    assert rows[-1].value > 1 and all(row.metric != "speedup" for row in rows)


def test_the_published_shape():
    """The head of the 0.5B model: 42 million parameters."""
    with torch.no_grad():
        head = bench_vibevoice.build(bench_vibevoice.WIDTHS["vibevoice-0.5b"], 0).model
    parameters = sum(p.numel() for p in head.diffusion_head.parameters())
    assert parameters == pytest.approx(42e6, rel=0.01)


@pytest.mark.parametrize("case", ["mar-b/N=1/int8", "vibevoice-0.5b/N=0/int8", "vibevoice-0.5b"])
def test_cases_of_another_form_are_named(case):
    with pytest.raises(ValueError, match="expected <head>/N=<tokens>/<dtype> with a head of vibe"):
        bench_vibevoice.parse(case)
