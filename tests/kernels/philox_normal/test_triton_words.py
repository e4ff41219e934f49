"""Philox in Triton against the reference, word for word."""

import os

import pytest
import torch

from ardiff_kernels.ops._shared.address import philox_words

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
from ardiff_kernels.ops._shared.triton.common import low_high, philox4  # noqa: E402

DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))


@triton.jit
def words_kernel(quad_ptr, counter_ptr, stream_ptr, key_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    c2, c3 = low_high(tl.load(stream_ptr + i))
    k0, k1 = low_high(tl.load(key_ptr))
    c0 = tl.load(quad_ptr + i).to(tl.uint32)
    c1 = tl.load(counter_ptr + i).to(tl.uint32)
    w0, w1, w2, w3 = philox4(c0, c1, c2, c3, k0, k1)
    tl.store(out_ptr + i, w0.to(tl.int64))
    tl.store(out_ptr + N + i, w1.to(tl.int64))
    tl.store(out_ptr + 2 * N + i, w2.to(tl.int64))
    tl.store(out_ptr + 3 * N + i, w3.to(tl.int64))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("key", [0, 1, -1, 0x29A31F5CD00DBEE1, -(2**63)])
def test_words_are_the_references(key, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} sees no CUDA or ROCm device")
    if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("triton serves cpu tensors only under TRITON_INTERPRET=1")
    n = 1024
    generator = torch.Generator().manual_seed(5)
    quad, counter = torch.randint(0, 2**32, (2, n), generator=generator)
    stream = torch.randint(-(2**63), 2**63 - 1, (n,), generator=generator)
    quad[:4] = torch.tensor([0, 2**32 - 1, 2**31, 1])
    inputs = [t.to(device) for t in (quad, counter, stream, torch.tensor([key]))]
    out = torch.empty(4, n, dtype=torch.int64, device=device)
    words_kernel[(1,)](*inputs, out, N=n)
    assert torch.equal(out.cpu(), torch.stack(philox_words(quad, counter, stream, inputs[3].cpu())))
