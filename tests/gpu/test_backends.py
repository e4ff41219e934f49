"""Every op on `triton` and `cuda` against the float64 reference; `cuda` against `cpu` by bit."""

from __future__ import annotations

import pytest
import torch

import ardiff_kernels
from ardiff_kernels import testing
from ardiff_kernels.ops import philox_normal, philox_normal_

from . import calls

OPS = tuple(calls.BOUNDS)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("backend", calls.BACKENDS)
@pytest.mark.parametrize("n", [1, 3, 17, 1024, 65537])
def test_normals_match_the_reference(backend: str, n: int) -> None:
    calls.require("philox_normal", backend)
    key, stream = torch.tensor([0x1234_5678_9ABC]), torch.arange(5) * 2**20 + 7
    with ardiff_kernels.backend("reference"):
        expected = philox_normal(key, 9, stream, n)
    with ardiff_kernels.backend(backend):
        got = philox_normal(key.to(calls.DEVICE), 9, stream.to(calls.DEVICE), n)
        filled = torch.full((5, n), float("nan"), device=calls.DEVICE)
        philox_normal_(filled, key.to(calls.DEVICE), 9, stream.to(calls.DEVICE))
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
@pytest.mark.parametrize("three_way", [False, True], ids=["guided", "three-way"])
@pytest.mark.parametrize("op", OPS)
def test_guided_step_matches_the_reference(op: str, three_way: bool, backend: str) -> None:
    calls.require(op, backend)
    call = calls.make(op, 6, 130, torch.bfloat16)
    call.options = testing.guidance_options(call, three_way)
    call.options["noise_scale"] = torch.linspace(0.5, 1.5, 6)
    with ardiff_kernels.backend(backend):
        calls.check(call, calls.on_gpu(call).functional())


@pytest.mark.parametrize("backend", calls.BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_rows_of_a_wider_buffer(op: str, backend: str) -> None:
    calls.require(op, backend)
    call = calls.make(op, 4, 37)
    device = calls.on_gpu(call)
    for name in (*call.state, "model_out"):
        wide = torch.full((4, 50), float("nan"), device=calls.DEVICE)
        wide[:, :37] = device.args[name]
        device.args[name] = wide[:, :37]
    with ardiff_kernels.backend(backend):
        calls.check(call, device.functional())


@pytest.mark.parametrize("backend", calls.BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_finished_rows_are_copied(op: str, backend: str) -> None:
    calls.require(op, backend)
    call = calls.make(op, 4, 33)
    call.args["row"] = torch.tensor([-1, 0, 99, 1], dtype=torch.int32)
    device = calls.on_gpu(call)
    with ardiff_kernels.backend(backend):
        results = device.functional()
    for name, got in zip(call.state, results, strict=False):
        for sample in (0, 2):
            assert torch.equal(got[sample], device.args[name][sample])


@pytest.mark.parametrize("backend", calls.BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_offsets_past_two_to_the_31(op: str, backend: str) -> None:
    calls.require(op, backend)
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("12 GiB of free GPU memory are needed")
    call = calls.make(op, 2, 65)
    device = calls.on_gpu(call)
    buffer = torch.zeros(2**31 + 4096, device=calls.DEVICE)
    far = buffer.as_strided((2, 65), (2**31 + 1024, 1))
    name = call.state[0]
    far.copy_(device.args[name])
    device.args[name] = far
    with ardiff_kernels.backend(backend):
        calls.check(call, device.functional())


@pytest.mark.parametrize("backend", calls.BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_an_empty_batch(op: str, backend: str) -> None:
    calls.require(op, backend)
    with ardiff_kernels.backend(backend):
        results = calls.on_gpu(calls.make(op, 0, 8)).functional()
    assert all(t.shape == (0, 8) for t in results)


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
