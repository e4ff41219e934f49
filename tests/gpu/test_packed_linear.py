"""`packed_linear` on the GPU at published widths, and in a graph. What tests/kernels promises is
tested there on both backends."""

from __future__ import annotations

import pytest
import torch

import ardiff_kernels
from ardiff_kernels.testing import same_bits
from tests.kernels.packed_linear.calls import BF16, DTYPES, EVERYTHING, I8, excess, linear_call

from . import calls

# Layers of Qwen2.5-1.5B, the transformer of VibeVoice-1.5B, and one of odd lengths.
LAYERS = {
    "qkv": dict(columns=1536, rows=2048, norm=True, bias=True),
    "output": dict(columns=1536, rows=1536, residual=True),
    "gate and up": dict(columns=1536, rows=17920, activation="swiglu", norm=True),
    "down": dict(columns=8960, rows=1536, gate="shared", residual=True),
    "odd": dict(columns=1001, rows=999, **EVERYTHING),
}


def on_gpu(N: int, **case):
    with torch.device(calls.DEVICE):
        return linear_call(N, **case)


@pytest.mark.parametrize("N", [1, 8, 20, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("backend", calls.BACKENDS)
def test_error_is_within_twice_that_of_pytorch(backend, name, dtype, N):
    calls.require("packed_linear", backend)
    call = on_gpu(N, dtype=dtype, x=BF16 if N != 8 else torch.float32, **LAYERS[name])
    with ardiff_kernels.backend(backend), torch.device(calls.DEVICE):
        assert excess(call.functional(), call) <= 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("backend", calls.BACKENDS)
def test_a_row_has_the_same_bits_in_any_company_and_again(backend, name, dtype):
    """Ten runs have the same bits: lanes that overtake one another would differ."""
    calls.require("packed_linear", backend)
    call = on_gpu(41, dtype=dtype, x=BF16, **LAYERS[name])
    with ardiff_kernels.backend(backend), torch.device(calls.DEVICE):
        together = call.functional()
        for _ in range(10):
            assert same_bits(call.functional(), together)
        for index in ([0], [40], [5, 2, 7, 7], list(range(8)), list(range(17))):
            assert same_bits(call.rows(index).functional(), together[index])
        assert same_bits(call.rows(slice(3, 4)).functional(), together[3:4])  # a view


@pytest.mark.parametrize("backend", calls.BACKENDS)
def test_more_rows_than_a_workspace_holds(backend):
    calls.require("packed_linear", backend)
    call = on_gpu(1000, columns=4096, rows=8192, dtype=BF16, x=BF16)
    with ardiff_kernels.backend(backend), torch.device(calls.DEVICE):
        together = call.functional()
        assert excess(together, call) <= 1
        for n in (0, 511, 512, 999):
            assert same_bits(call.rows([n]).functional(), together[[n]])


@pytest.mark.parametrize("backend", calls.BACKENDS)
def test_a_graph_of_a_block_follows_its_input(backend):
    """Up and down, captured once, with weights of bfloat16 and of int8."""
    calls.require("packed_linear", backend)
    up = on_gpu(4, dtype=BF16, x=BF16, **LAYERS["gate and up"])
    down = on_gpu(4, dtype=I8, x=BF16, **LAYERS["down"])
    x = up.args["x"].contiguous()

    def block():
        h = up.changed(x=x).functional()
        return down.changed(x=h, residual=x).functional()

    with torch.device(calls.DEVICE), ardiff_kernels.backend(backend), torch.inference_mode():
        block()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = block()
        for _ in range(3):
            x.normal_()
            graph.replay()
            torch.cuda.synchronize()
            assert same_bits(result, block())
