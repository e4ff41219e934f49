"""`kv_append` and `kv_attention` on the GPU at decoding sizes: PyTorch's own attention as the
measure, and graphs that follow the lengths. The tests of tests/kernels run there too."""

from __future__ import annotations

import pytest
import torch

import ardiff_kernels
from ardiff_kernels import testing
from ardiff_kernels.testing import same_bits
from tests.kernels.kv_append.calls import APPENDS, WRONG, append_call, assert_left_alone
from tests.kernels.kv_attention.calls import BF16, F8, F32, I8, attention_call, random

from . import calls

DECODE = {
    "bfloat16": dict(dtype=BF16),
    "bfloat16, rotary, norm, pages": dict(dtype=BF16, rotary=64, norm=True, block=64),
    "bfloat16, pages of 16": dict(dtype=BF16, block=16),
    "float32": dict(),
    "float32 queries": dict(cache=BF16),
    "int8": dict(dtype=BF16, cache=I8),
    "float8, window": dict(dtype=BF16, cache=F8, window=700),
    "bfloat16, 4 tokens": dict(dtype=BF16, T=4),
    "float32, 33 tokens, D = 256": dict(T=33, D=256, window=300),
}
LENGTH = [5000, 0, 255, 256, 1023, 3001]


def decode(name: str, **changes):
    case = dict(length=LENGTH, heads=16, kv_heads=4, D=128) | DECODE[name] | changes
    with torch.device(calls.DEVICE):
        return attention_call(**case)


@pytest.mark.parametrize("backend", calls.BACKENDS)
@pytest.mark.parametrize("name", DECODE)
def test_error_is_within_twice_that_of_pytorch(name, backend):
    calls.require("kv_attention", backend)
    call = decode(name)
    with ardiff_kernels.backend(backend), torch.device(calls.DEVICE):
        found, exact, theirs = call.functional().double(), call.oracle(), call.sdpa().double()
    assert (found - exact).abs().max() <= 2 * (theirs - exact).abs().max() + 2.0**-24


@pytest.mark.parametrize("backend", calls.BACKENDS)
@pytest.mark.parametrize("name", DECODE)
def test_company_capacity_and_tokens_give_the_same_bits(name, backend):
    calls.require("kv_attention", backend)
    call, wide = decode(name), decode(name, capacity=9000)
    with ardiff_kernels.backend(backend), torch.device(calls.DEVICE):
        together = call.functional()
        assert same_bits(wide.functional(), together)
        for b in range(len(LENGTH)):
            assert same_bits(call.row(b).functional(), together[b : b + 1])
        for t in range(call.args["q"].shape[1]):
            assert same_bits(call.token(t).functional(), together[:, t : t + 1])


@pytest.mark.parametrize("backend", calls.BACKENDS)
@pytest.mark.parametrize("cache", [F32, BF16, I8, F8], ids=str)
def test_append_writes_what_the_reference_writes(cache, backend):
    """Values to the bit; keys, which are rotated, within a step of their type."""
    calls.require("kv_append", backend)
    results = {}
    for name, device in (("reference", "cpu"), (backend, calls.DEVICE)):
        k, v = (random(i, 5, 3, 4, 128).to(device) for i in range(2))
        caches = [torch.zeros(5, 4, 4096, 128, device=device).to(cache) for _ in range(2)]
        options = {"cos": random(3, 4096, 64).to(device), "sin": random(4, 4096, 64).to(device)}
        if cache in (I8, F8):
            options |= {f"{n}_scale": torch.zeros(5, 4, 4096, device=device) for n in "kv"}
        length = torch.tensor([0, 7, 4093, 100, 2000], dtype=torch.int32, device=device)
        with ardiff_kernels.backend(name):
            results[name] = torch.ops.ardiff.kv_append(k, v, *caches, length, **options)
    keys, values, *scales = (t.cpu().float() for t in results[backend])
    expected = [t.float() for t in results["reference"]]
    assert torch.equal(values, expected[1]) and torch.equal(scales[1], expected[3])
    step = {F32: 1e-6, BF16: 2.0**-7, I8: 1.0, F8: 2.0**-3}[cache]
    relative = 0.0 if cache == I8 else step
    bound = step + relative * expected[0].abs()  # int8: one code
    assert ((keys - expected[0]).abs() <= bound).all()


@pytest.mark.parametrize("backend", calls.BACKENDS)
@pytest.mark.parametrize("name", WRONG)
def test_a_row_that_does_not_fit_is_left_alone(name, backend):
    calls.require("kv_attention", backend)
    with ardiff_kernels.backend(backend), torch.device(calls.DEVICE):
        assert_left_alone(name, torch.ops.ardiff.kv_append, torch.ops.ardiff.kv_attention)


@pytest.mark.parametrize("name", APPENDS)
def test_append_in_cuda_equals_cpu_by_bit(name):
    calls.require("kv_append", "cuda")
    if "cpu" not in testing.usable_backends("kv_append"):
        pytest.skip("the C++ CPU kernels are not built")
    args, options = append_call(**APPENDS[name])
    with ardiff_kernels.backend("cpu"):
        expected = torch.ops.ardiff.kv_append(*args, **options)
    args = [t.to(calls.DEVICE) for t in args]
    options = {n: t.to(calls.DEVICE) if n != "norm_eps" else t for n, t in options.items()}
    with ardiff_kernels.backend("cuda"):
        got = torch.ops.ardiff.kv_append(*args, **options)
    for a, b in zip(got, expected, strict=True):
        assert same_bits(a.cpu(), b)


def test_unaligned_queries_and_caches():
    """Which the copies of 16 bytes of `cuda` do not take."""
    calls.require("kv_attention", "cuda")
    with ardiff_kernels.backend("cuda"), torch.device(calls.DEVICE):
        for cache in (BF16, I8):
            call = attention_call([5000, 300], T=2, dtype=BF16, cache=cache, D=72)
            expected = call.functional()
            for name in ("q", "k_cache", "v_cache"):
                whole = call.args[name]
                shifted = torch.empty(whole.numel() + 1, dtype=whole.dtype)[1:].view(whole.shape)
                call.args[name] = shifted.copy_(whole)
            assert same_bits(call.functional(), expected)


@pytest.mark.parametrize("backend", calls.BACKENDS)
def test_a_graph_follows_the_lengths(backend):
    """Append and attention, captured once, replayed as the sequences grow."""
    calls.require("kv_attention", backend)
    with torch.device(calls.DEVICE), ardiff_kernels.backend(backend), torch.inference_mode():
        caches = [torch.zeros(3, 2, 600, 64, dtype=BF16) for _ in range(4)]
        new = random(1, 3, 1, 8, 64, dtype=BF16)
        length = torch.tensor([250, 0, 9], dtype=torch.int32)

        def step(k_cache, v_cache):
            torch.ops.ardiff.kv_append_(new[:, :, :2], new[:, :, 2:4], k_cache, v_cache, length)
            return torch.ops.ardiff.kv_attention(new[:, :, 4:], k_cache, v_cache, length)

        step(*caches[:2])
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = step(*caches[:2])
        for _ in range(10):
            new.normal_()
            graph.replay()
            torch.cuda.synchronize()
            assert same_bits(result, step(*caches[2:]))
            length += 1
