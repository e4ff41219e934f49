"""The calls that the GPU tests run: the CPU tests' own inputs, moved to the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ardiff_kernels import testing
from ardiff_kernels.dispatch import backends
from ardiff_kernels.testing import Call

DEVICE = "cuda"
BACKENDS = ("triton", "cuda")
SHAPES = ((1, 1), (3, 16), (5, 33), (64, 1024), (2, 65537))
BOUNDS: dict[str, Callable] = {
    "uld_step": testing.uld_bounds,
    "diffusion_step": testing.diffusion_bounds,
}


def require(op: str, backend: str) -> None:
    """Skip, with the reason, where a backend cannot serve an op on the GPU."""
    reason = backends.unusable(op, backend, "cuda")
    if reason:
        pytest.skip(f"{backend}: {reason}")


def make(op: str, rows: int, d: int, dtype: torch.dtype = torch.float32) -> Call:
    """A random call of a step op, on the CPU."""
    build = {"uld_step": testing.uld_call, "diffusion_step": testing.diffusion_call}[op]
    return build(rows, d, dtype)


def on_gpu(call: Call) -> Call:
    """The same call with every tensor on the GPU."""
    args = {name: t.to(DEVICE) for name, t in call.args.items()}
    options = {n: t.to(DEVICE) if isinstance(t, Tensor) else t for n, t in call.options.items()}
    return replace(call, args=args, options=options)


def check(call: Call, results: tuple[Tensor, ...]) -> None:
    """The results of a step op against its float64 reference, within the CPU tests' bounds."""
    for got, expected, bound in zip(results, call.oracle(), BOUNDS[call.op](call), strict=False):
        testing.assert_within(got.cpu(), expected, bound.clamp(min=1e-30))
