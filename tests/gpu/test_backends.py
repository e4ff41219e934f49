"""`triton` and `cuda` against the float64 reference on shapes up to many blocks, and `cuda` against
`cpu` by bit. All else that an op promises is tested on both by tests/kernels."""

from __future__ import annotations

import pytest
import torch

import ardiff_kernels
from ardiff_kernels import testing
from ardiff_kernels.ops import (
    brownian_increment,
    brownian_increment_,
    philox_normal,
    philox_normal_,
)
from ardiff_kernels.ops._shared.address import normals

from . import calls

OPS = tuple(calls.BOUNDS)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("backend", calls.BACKENDS)
@pytest.mark.parametrize("n", [1, 3, 17, 1024, 65537])
def test_normals_match_the_reference(backend: str, n: int) -> None:
    calls.require("philox_normal", backend)
    key, stream = torch.tensor([0x1234_5678_9ABC]), torch.arange(5) * 2**20 + 7
    expected = normals(key, torch.tensor([9]), stream, n)
    with ardiff_kernels.backend(backend):
        got = philox_normal(key.to(calls.DEVICE), 9, stream.to(calls.DEVICE), n)
        filled = torch.full((5, n), float("nan"), device=calls.DEVICE)
        philox_normal_(filled, key.to(calls.DEVICE), 9, stream.to(calls.DEVICE))
    testing.assert_within(got.cpu(), expected, testing.NORMAL_TOLERANCE)
    assert torch.equal(got, filled)


@pytest.mark.parametrize("backend", calls.BACKENDS)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("d", [1, 17, 1024, 65537])
def test_increments_match_the_reference(backend: str, shared: bool, d: int) -> None:
    calls.require("brownian_increment", backend)
    key, stream = torch.tensor([0x1234_5678_9ABC]), torch.arange(5) * 2**20 + 7
    start = torch.tensor([0.0, 2.0**-40, 0.3, 1.0, 1e6])[: 1 if shared else 5]
    end = torch.tensor([1e-9, 3.0, 0.3000001, 1.75, 2e6])[: 1 if shared else 5]
    with ardiff_kernels.backend("reference"):
        expected = brownian_increment(key, stream, start, end, d)
    given = [t.to(calls.DEVICE) for t in (key, stream, start, end)]
    with ardiff_kernels.backend(backend):
        got = brownian_increment(*given, d)
        filled = torch.full((5, d), float("nan"), device=calls.DEVICE)
        brownian_increment_(filled, *given)
    testing.assert_within(got.cpu(), expected, 2 * testing.NORMAL_TOLERANCE)
    assert torch.equal(got, filled)


@pytest.mark.parametrize("backend", calls.BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows,d", calls.SHAPES)
@pytest.mark.parametrize("op", OPS)
def test_step_matches_the_reference(
    op: str, rows: int, d: int, dtype: torch.dtype, backend: str
) -> None:
    calls.require(op, backend)
    call = calls.make(op, rows, d, dtype)
    device = calls.on_gpu(call)
    with ardiff_kernels.backend(backend):
        functional, in_place = device.functional(), device.in_place()
    calls.check(call, functional)
    for got, expected in zip(in_place, functional, strict=False):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("backend", calls.BACKENDS)
@pytest.mark.parametrize("memories", [1, 2, 3])
def test_more_memories_and_the_unconditional_prediction(memories: int, backend: str) -> None:
    calls.require("diffusion_step", backend)
    kind = dict(memories=memories, unconditional=True)
    call = testing.diffusion_call(7, 515, torch.bfloat16, **kind)
    call.options |= testing.guidance_options(call, three_way=True) | {"x0_clamp": 0.75}
    device = calls.on_gpu(call)
    with ardiff_kernels.backend(backend):
        functional, in_place = device.functional(), device.in_place()
    calls.check(call, functional)
    for got, expected in zip(in_place, functional, strict=False):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("op", OPS)
def test_cuda_equals_cpu_by_bit(op: str) -> None:
    calls.require(op, "cuda")
    if "cpu" not in testing.usable_backends(op):
        pytest.skip("the C++ CPU kernels are not built")
    call = calls.make(op, 7, 515, torch.bfloat16)
    with ardiff_kernels.backend("cpu"):
        expected = call.functional()
    with ardiff_kernels.backend("cuda"):
        got = calls.on_gpu(call).functional()
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a.cpu(), b)
