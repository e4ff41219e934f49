"""Tensors [B, ...] in place of [B, d]: the same bits in another shape, on every backend.

A backend that reads a trailing dimension as a row, or takes the second half of a tensor twice as
long in dimension 1 from elsewhere, gives other numbers.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ardiff_kernels import ops, testing
from tests.kernels.mala_accept import calls as accept_calls

INNER = (2, 3, 4)  # d = 24


def deep(t: Tensor) -> Tensor:
    """`[B, k d]` as `[B, k * 2, 3, 4]`, rows where they lie in memory; others as they are."""
    if not isinstance(t, Tensor) or t.dim() != 2 or t.shape[1] % 24:
        return t
    return t.unflatten(1, (-1, *INNER[1:]))


def calls(rows: int) -> dict:
    wide = testing.diffusion_call(rows, 24, memories=3, seed=3)
    learned = testing.diffusion_call(rows, 24, seed=4, learned_range=True)
    guided = testing.uld_call(rows, 24, torch.bfloat16, seed=5)
    guided.options |= testing.guidance_options(guided, three_way=True)
    return {
        "uld": testing.uld_call(rows, 24),
        "uld guided": guided,
        "diffusion": testing.diffusion_call(rows, 24),
        "diffusion third memory": wide,
        "diffusion learned": learned,
        "accept": accept_calls.accept_call(rows, 24),
    }


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("name", calls(1))
def test_same_bits(implementation, name, rows):
    flat, shaped = calls(rows)[name], calls(rows)[name]
    shaped.args = {k: v if k == "coef" else deep(v) for k, v in shaped.args.items()}
    shaped.options = {k: deep(v) for k, v in shaped.options.items()}
    for expected, got in (
        (flat.functional(), shaped.functional()),
        (flat.in_place(), shaped.in_place()),
    ):
        for one, other in zip(expected, got, strict=True):
            assert other.shape == deep(one).shape
            assert torch.equal(other.flatten(1) if one.dim() == 2 else other, one)
    fakes = [t.to("meta") for t in shaped.args.values()]
    found = getattr(torch.ops.ardiff, getattr(shaped, "op", "mala_accept"))(
        *fakes, **{k: v.to("meta") for k, v in shaped.options.items()}
    )
    assert [t.shape for t in found] == [t.shape for t in shaped.functional()]


@pytest.mark.parametrize("name", ["uld", "diffusion", "diffusion third memory"])
def test_gradients(name):
    flat, shaped = calls(3)[name], calls(3)[name]
    grads = []
    for call, shape in ((flat, lambda t: t), (shaped, deep)):
        names = [k for k, v in call.args.items() if v.dim() == 2 and k != "coef"]
        leaves = {k: call.args[k].clone().requires_grad_() for k in names}
        call.args |= {k: shape(v) for k, v in leaves.items()}
        results = call.functional()
        torch.cat(
            [t.flatten(1) * (i + 1) for i, t in enumerate(results)], 1
        ).square().sum().backward()
        grads.append({k: v.grad for k, v in leaves.items()})
    for k, expected in grads[0].items():
        assert torch.equal(grads[1][k], expected), k


def test_opcheck():
    call = calls(2)["diffusion learned"]
    call.args = {k: v if k == "coef" else deep(v) for k, v in call.args.items()}
    torch.library.opcheck(
        torch.ops.ardiff.diffusion_step.default, tuple(call.args.values()), call.options
    )


def test_messages(implementation):
    call = calls(2)["diffusion"]
    call.args = {k: v if k == "coef" else deep(v).contiguous() for k, v in call.args.items()}
    x = call.args["x"]
    for change, message in (
        ({"model_out": x.flatten(1)}, r"model_out must have the shape of x \[2, 2, 3, 4\] \(or "
         r"\[2, 4, 3, 4\] with learned-range variance\), got \[2, 24\]"),
        ({"memory": torch.zeros(2, 2, 6, 4)}, r"memory must have the shape of x \[2, 2, 3, 4\] "
         r"\(or \[2, 4, 3, 4\] or \[2, 6, 3, 4\] with more memories\), got \[2, 2, 6, 4\]"),
        ({"model_out": x.to(memory_format=torch.channels_last)}, "model_out must be contiguous "
         r"inside a row, got strides \[24, 1, 8, 2\]; call .contiguous\(\) first"),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match=f"^diffusion_step: {message}"):
            ops.diffusion_step(*(call.args | change).values())
