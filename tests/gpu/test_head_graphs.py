"""`head_step` on the GPU at published shapes, and tokens as CUDA graphs. The tests of tests/kernels
run there too."""

from __future__ import annotations

import pytest
import torch

import ardiff_kernels
from ardiff.heads.token import denoise_token
from ardiff.loop import cuda_graphs as graphs
from ardiff_kernels.testing import same_bits
from tests._support.head_cases import CONTEXT, KEY, KINDS, head_of, rows, table_of
from tests.kernels.head_step.calls import BF16, F32, I8, excess, head_call

from . import calls

SHAPES = {
    "mar-b": dict(width=1024, depth=6, d=16, out=16),
    "mar-h": dict(width=1536, depth=12, d=16, out=16),
    "vibevoice-1.5b": dict(norm="rms", mlp="gated", width=1536, inner=4608, depth=4, d=64, out=64),
    "pocket-tts": dict(width=512, depth=6, d=32, out=32),
}
ROWS = ((1, 1), (4, 3), (16, 1), (16, 2), (64, 1), (512, 2))


def made(name: str, dtype: torch.dtype, N: int, ways: int):
    outer = dict(outer=F32, modulation=F32 if dtype == F32 else BF16)
    with torch.device(calls.DEVICE):
        return head_call(N, dtype=dtype, ways=ways, **SHAPES[name], **outer)


@pytest.mark.parametrize("backend", calls.BACKENDS)
@pytest.mark.parametrize("size", ROWS, ids=str)
@pytest.mark.parametrize("dtype", [F32, BF16, I8], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_error_is_within_twice_that_of_pytorch(name, dtype, size, backend):
    calls.require("head_step", backend)
    call = made(name, dtype, *size)
    with ardiff_kernels.backend(backend), torch.device(calls.DEVICE):
        assert excess(call.functional(), call) <= 1


@pytest.mark.parametrize("backend", calls.BACKENDS)
@pytest.mark.parametrize("dtype", [F32, BF16, I8], ids=str)
@pytest.mark.parametrize("name", ["mar-b", "vibevoice-1.5b"])
def test_company_gives_the_same_bits(name, dtype, backend):
    calls.require("head_step", backend)
    call = made(name, dtype, 300, 2)
    with ardiff_kernels.backend(backend), torch.device(calls.DEVICE):
        together = call.functional(batch_invariant=True)
        for index in ([7], [299], list(range(16)), list(range(290, 190, -1))):
            assert same_bits(call.rows(index).functional(batch_invariant=True), together[:, index])
        assert same_bits(call.way(1).functional(batch_invariant=True), together[1:])


@pytest.mark.parametrize("backend", calls.BACKENDS)
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_token_is_one_graph(kind, weights, backend):
    """Other contexts, streams and guidance through one capture, which reads the weights of now."""
    calls.require("head_step", backend)
    head = head_of(kind, 16, 128, 3)
    inner = head.head if kind == "edm" else head
    inner.to(calls.DEVICE)
    table = table_of(kind, "flow-euler" if kind == "pocket" else "ddpm", 9)
    graphs.clear_graphs()
    with ardiff_kernels.backend(backend):
        for i, n in enumerate((3, 4, 40, 33)):
            arguments = (
                head, rows(n, CONTEXT, seed=i).to(calls.DEVICE), table, KEY.to(calls.DEVICE), i,
                torch.arange(n, device=calls.DEVICE) * 2**20 + 7,
            )  # fmt: skip
            uncond = rows(n, CONTEXT, seed=9).to(calls.DEVICE)
            options = {"uncond": uncond, "guidance": 1.0 + i, "weights": weights}
            options["batch_invariant"] = True  # 3 tokens are captured as 3, 33 as 48
            found = denoise_token(*arguments, cuda_graph=True, **options)
            assert same_bits(found, denoise_token(*arguments, **options))
            with torch.no_grad():
                for parameter in inner.parameters():
                    parameter.mul_(1.01)
    graphs.clear_graphs()
