"""`mala_accept` on the GPU: the CPU library's bits, and CUDA graphs that follow key and draw. The
tests of tests/kernels run there too."""

from __future__ import annotations

import pytest
import torch

import ardiff_kernels
from ardiff_kernels import testing
from tests.kernels.mala_accept.calls import accept_call, assert_same

from . import calls


def on(device: str, rows: int, d: int, **options):
    with torch.device(device):
        return accept_call(rows, d, torch.bfloat16, "energies", velocity=True, **options)


@pytest.mark.parametrize("shape", [(70, 5), (33, 64), (7, 515), (3, 5000), (2, 40003)], ids=str)
def test_cuda_equals_cpu_by_bit(shape):
    calls.require("mala_accept", "cuda")
    if "cpu" not in testing.usable_backends("mala_accept"):
        pytest.skip("the C++ CPU kernels are not built")
    with ardiff_kernels.backend("cpu"):
        expected = on("cpu", *shape).functional()
    with ardiff_kernels.backend("cuda"):
        got = on(calls.DEVICE, *shape).functional()
    for a, b in zip(got, expected, strict=True):
        assert_same(a.cpu(), b)


@pytest.mark.parametrize("backend", calls.BACKENDS)
def test_replay_follows_key_and_draw(backend):
    calls.require("mala_accept", backend)
    call = on(calls.DEVICE, 512, 20)
    with torch.inference_mode(), ardiff_kernels.backend(backend):
        call.functional()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = call.functional()

        def replay():
            graph.replay()
            torch.cuda.synchronize()
            return results[4].clone()

        first = replay()
        call.args["key"].add_(1)
        other_key = replay()
        call.args["key"].sub_(1)
        call.args["draw"].add_(1)
        other_draw = replay()
        call.args["draw"].sub_(1)
        assert torch.equal(replay(), first)
    assert not torch.equal(first, other_key) and not torch.equal(first, other_draw)
