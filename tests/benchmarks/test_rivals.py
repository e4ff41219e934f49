"""The rivals of heads and layers: their names, dtypes and results."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from benchmarks import _harness, _rivals  # noqa: E402
from tests._support.fake_torchao import quantized_by_rounding

_BFLOAT16 = ["eager-bfloat16", "compile-bfloat16"]


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(8, 4).requires_grad_(False)


@pytest.mark.parametrize(
    ("weights", "device", "expected"),
    [
        ("float32", "cpu", ["eager", "compile", "compile-frozen"]),
        ("float32", "cuda", ["eager", "compile", "graphed-compile"]),
        ("bfloat16", "cpu", ["eager-float32", *_BFLOAT16, "compile-frozen-bfloat16"]),
        ("bfloat16", "cuda", ["eager-float32", *_BFLOAT16, "graphed-compile-bfloat16"]),
        (
            "int8", "cpu",
            ["eager-float32", *_BFLOAT16, "compile-frozen-bfloat16", "torchao-int8",
             "compile-torchao-int8", "compile-frozen-torchao-int8"],
        ),
        (
            "int8", "cuda",
            ["eager-float32", *_BFLOAT16, "graphed-compile-bfloat16", "torchao-int8",
             "compile-torchao-int8", "graphed-compile-torchao-int8"],
        ),
    ],
)  # fmt: skip
def test_names_say_the_dtype(weights, device, expected, monkeypatch):
    monkeypatch.setattr(_rivals, "has_torchao", lambda: True)
    assert list(_rivals.of(layer(), weights, device)) == expected
    monkeypatch.setattr(_rivals, "has_torchao", lambda: False)
    without = [name for name in expected if "torchao" not in name]
    assert list(_rivals.of(layer(), weights, device)) == without
    for rival in (*expected, *(f"graphed-{name}" for name in expected if "compile" not in name)):
        _harness.speedup_row("s", "c", rival, [2.0], [1.0])


def test_a_rival_asked_for_comes_in_every_dtype():
    known = dict.fromkeys(_rivals.of(layer(), "bfloat16", "cpu"))
    for asked, expected in (
        (["eager"], ["eager-float32", "eager-bfloat16"]),
        (["compile-bfloat16"], ["compile-bfloat16"]),
    ):
        assert list(_harness.Settings(rivals=asked).pick(known)) == expected
    with pytest.raises(ValueError, match="unknown rival 'torchao': expected one of eager-float32,"):
        _harness.Settings(rivals=["torchao"]).pick(known)


def test_that_torchao_is_missing_is_said_once(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    _rivals.has_torchao.cache_clear()
    try:
        assert not _rivals.has_torchao() and not _rivals.has_torchao()
    finally:
        _rivals.has_torchao.cache_clear()
    assert capsys.readouterr().err == "no rival torchao-int8: torchao is not installed\n"


def test_each_runs_in_its_dtype(monkeypatch):
    """A rounded copy differs from its module, which stays as it was."""
    monkeypatch.setattr(torch, "compile", lambda call, **options: call)
    quantized_by_rounding(monkeypatch)
    module = layer()
    x, weight = torch.randn(3, 8), module.weight.clone()
    exact = module(x)
    results = {}
    for name, make in _rivals.of(module, "int8", "cpu").items():
        rival = make()
        found = rival.call(x.to(rival.dtype))
        assert found.dtype == rival.dtype
        results[name] = found.float()
    assert torch.equal(results["eager-float32"], exact) and torch.equal(module.weight, weight)
    errors = {name: float((found - exact).norm() / exact.norm()) for name, found in results.items()}
    for name, error in errors.items():
        assert (error > 0) == (name != "eager-float32") and error < 0.02
    assert torch.equal(results["compile-torchao-int8"], results["torchao-int8"])
    assert not torch.equal(results["torchao-int8"], results["eager-bfloat16"])


def test_compiled_code_is_each_call_s_own():
    """More of one class than Dynamo compiles for one code, and the results of each."""
    torch._dynamo.reset()
    x, seen = torch.randn(3, 8), []

    def backend(graph, inputs):
        seen.append(graph)
        return graph

    modules = [nn.Linear(8, 4) for _ in range(torch._dynamo.config.recompile_limit + 1)]
    for module in modules:
        found = _rivals.compiled(module, backend=backend)(x)
        assert torch.equal(found, module(x))
    assert len(seen) == len(modules)


class Doubled(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, 2 * self.weight)


def test_frozen_weights_are_constants_of_the_graph():
    """What is made from them is made once, so that a later write to the layer is not seen.
    Inductor's `freezing` as an option of `torch.compile` has no such effect."""
    module, x = Doubled(8, 4, bias=False).requires_grad_(False), torch.randn(3, 8)
    with torch.inference_mode():
        frozen = _rivals.frozen(module)
        expected = module(x)
        torch.testing.assert_close(frozen(x), expected)
        module.weight.zero_()
        torch.testing.assert_close(frozen(x), expected)


def test_torchao_itself():
    pytest.importorskip("torchao")
    module = layer()
    x = torch.randn(3, 8)
    with torch.inference_mode():
        call, dtype = _rivals.of(module, "int8", "cpu")["torchao-int8"]()
        assert call.weight is not module.weight and "Int8" in type(call.weight).__name__
        error = call(x.to(dtype)).float() - module(x)
    assert 0 < error.norm() < 0.02 * module(x).norm()
