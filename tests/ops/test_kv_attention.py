"""`kv_attention` on every implementation: against float64, PyTorch's own attention as the measure,
and to the bit where only the company of a row changes."""

from __future__ import annotations

import math

import pytest
import torch
from kv_calls import BF16, F8, F32, I8, INTERPRETED, attention_call, same_bits

from ardiff_kernels import _backends, testing

# Few programs each, for the interpreter.
SMALL = {
    "one": dict(length=[5]),
    "ragged": dict(length=[0, 300, 40], kv_heads=1, D=32, dtype=BF16),
    "causal": dict(length=[254, 3], T=4, kv_heads=1, count=[4, 2]),
    "block causal": dict(length=[30], T=3, causal=False, kv_heads=1),
    "window": dict(length=[300], T=3, window=20, kv_heads=1),
    "paged": dict(length=[70, 9], block=16, dtype=BF16, kv_heads=1),
    "int8": dict(length=[70], cache=I8, kv_heads=1),
    "float8": dict(length=[70], cache=F8, kv_heads=1),
    "rotary and norm": dict(length=[20], T=2, rotary=32, norm=True, kv_heads=1),
    "0 to 4096": dict(length=[4095, 0, 257, 1], kv_heads=1),
    "0 to 4096 bfloat16": dict(length=[4095, 0], kv_heads=1, dtype=BF16),
}
CASES = {
    "empty": dict(length=[]),
    "no new token": dict(length=[5, 0, 7], T=2, count=[0, 0, 2]),
    "ragged to 4095": dict(length=[4095, 0, 1, 255, 256, 257, 1000], heads=8),
    "ragged to 4095 bfloat16": dict(length=[4095, 0, 1, 255, 256, 257, 1000], dtype=BF16),
    "ratio 1": dict(length=[300, 17], heads=3, kv_heads=3, dtype=BF16),
    "ratio 3": dict(length=[300, 17], heads=6, kv_heads=2, D=96),
    "ratio 5": dict(length=[513], heads=5, kv_heads=1, D=40),
    "ratio 7": dict(length=[513], heads=14, kv_heads=2, D=72, dtype=BF16),
    "ratio 8": dict(length=[700], heads=8, kv_heads=1, D=128),
    "D 32": dict(length=[700, 3], D=32, dtype=BF16),
    "D 88": dict(length=[700, 3], D=88),
    "D 256": dict(length=[700, 3], D=256),
    "64 tokens": dict(length=[0, 250, 3000], T=64, dtype=BF16),
    "64 tokens, counts": dict(length=[0, 250, 100], T=64, count=[64, 17, 0], heads=6),
    "17 tokens block-causal": dict(length=[250, 0], T=17, causal=False, D=80),
    "window 1": dict(length=[300, 0], T=5, window=1),
    "window 100": dict(length=[1000, 30, 511], T=9, window=100, dtype=BF16),
    "window 300 block-causal": dict(length=[1000], T=40, window=300, causal=False),
    "pages of 1": dict(length=[40, 7], T=3, block=1),
    "pages of 48": dict(length=[700, 0, 255], T=3, block=48),
    "pages of 256 bfloat16": dict(length=[700, 0, 255], block=256, dtype=BF16),
    "rotary": dict(length=[700, 1], T=5, rotary=64),
    "partial rotary and norm": dict(length=[700, 1], T=5, rotary=32, norm=True, D=96),
    "rotary and norm bfloat16": dict(length=[700, 1], T=5, rotary=64, norm=True, dtype=BF16),
    "int8 bfloat16": dict(length=[700, 1], T=2, cache=I8, dtype=BF16, D=80),
    "int8 pages": dict(length=[700, 1], T=2, cache=I8, block=32),
    "float8 bfloat16": dict(length=[700, 1], T=2, cache=F8, dtype=BF16, D=80),
    "float8 window": dict(length=[700, 1], T=2, cache=F8, window=60),
    "float32 queries, bfloat16 cache": dict(length=[700, 1], T=2, cache=BF16),
    "bfloat16 queries, float32 cache": dict(length=[700, 1], T=2, dtype=BF16, cache=F32),
    "scale": dict(length=[300], scale=0.5),
    "one split of many": dict(length=[4000], heads=2, kv_heads=1),
    **SMALL,
}
# Calls whose rows and tokens are taken apart; the interpreter takes the first.
COMPANY = {
    "bfloat16": dict(length=[270, 5, 0], T=2, kv_heads=1, dtype=BF16),
    "float32": dict(length=[700, 256, 0, 31], T=5, heads=6, D=72),
    "float32 window": dict(length=[700, 256, 0, 31], T=5, window=260),
    "int8": dict(length=[700, 256, 0, 31], T=3, cache=I8, count=[3, 1, 2, 0]),
    "float8 pages": dict(length=[700, 256, 0, 31], T=3, cache=F8, block=32),
    "rotary and norm": dict(length=[700, 31], T=3, rotary=64, norm=True, dtype=BF16),
    "many tokens": dict(length=[500, 3], T=33, heads=8, dtype=BF16),
}


@pytest.fixture
def serving(implementation):
    """The implementation, where it has the op."""
    name, _, variant = implementation.partition("-")
    if reason := _backends.unusable("kv_attention", name, "cuda" if variant == "gpu" else "cpu"):
        pytest.skip(f"{name}: {reason}")
    return implementation


def excess(found: torch.Tensor, call) -> float:
    """The largest error over twice that of PyTorch's attention (and a float32 rounding)."""
    exact = call.oracle()
    assert found.shape == call.q.shape and found.dtype == call.q.dtype and found.is_contiguous()
    assert found.isfinite().all()
    if not found.numel():
        return 0.0
    theirs = (call.sdpa().double() - exact).abs().max().item()
    return (found.double() - exact).abs().max().item() / (2 * theirs + 2.0**-24)


@pytest.mark.parametrize("name", CASES)
def test_error_is_within_twice_that_of_pytorch(serving, name):
    if serving in INTERPRETED and name not in SMALL:
        pytest.skip("too many programs for the interpreter")
    call = attention_call(**CASES[name])
    assert excess(call.run(), call) <= 1


@pytest.mark.parametrize("name", ["window", "causal", "length", "rotary", "head"])
def test_a_wrong_call_would_be_noticed(name):
    """Negative control: one key more or fewer, one position or one head off."""
    call = attention_call([300, 40], T=3, heads=8, window=20, rotary=32)
    wrong = attention_call([300, 40], T=3, heads=8, window=20, rotary=32)
    if name == "window":
        wrong.options["window"] = 21
    elif name == "causal":
        wrong.options["causal"] = False
    elif name == "length":
        wrong.length = wrong.length - 1
    elif name == "rotary":
        at = wrong.length[:, None] + torch.arange(3)
        wrong.options["position"] = (at - 1).int()
    else:
        wrong.q = wrong.q.roll(1, 2)
    assert excess(wrong.run(), call) > 100


@pytest.mark.parametrize("name", COMPANY)
def test_a_row_alone_has_the_same_bits(serving, name):
    if serving in INTERPRETED and name != next(iter(COMPANY)):
        pytest.skip("too many programs for the interpreter")
    call = attention_call(**COMPANY[name])
    together = call.run()
    for b in range(len(call.q)):
        assert same_bits(call.row(b).run(), together[b : b + 1])


@pytest.mark.parametrize("name", COMPANY)
def test_another_capacity_gives_the_same_bits(serving, name):
    if serving in INTERPRETED and name != next(iter(COMPANY)):
        pytest.skip("too many programs for the interpreter")
    wide = attention_call(**COMPANY[name], capacity=1024)
    call = attention_call(**COMPANY[name])
    if "block" in COMPANY[name]:
        assert wide.options["block_table"].shape[1] > call.options["block_table"].shape[1]
    else:
        assert wide.k_cache.shape[2] > call.k_cache.shape[2]
    assert same_bits(wide.run(), call.run())


@pytest.mark.parametrize("name", COMPANY)
def test_tokens_one_by_one_have_the_same_bits(serving, name):
    if serving in INTERPRETED and name != next(iter(COMPANY)):
        pytest.skip("too many programs for the interpreter")
    call = attention_call(**COMPANY[name])
    together = call.run()
    for t in range(call.q.shape[1]):
        assert same_bits(call.token(t).run(), together[:, t : t + 1])


def test_pages_give_the_bits_of_a_contiguous_cache(serving):
    call, paged = (attention_call([300, 9], kv_heads=1, block=n) for n in (0, 16))
    assert same_bits(call.run(), paged.run())


def test_a_nan_key_reaches_only_the_queries_that_see_it(serving):
    call = attention_call([20], T=3, heads=2, kv_heads=1)
    clean = call.run()
    call.k_cache[0, 0, 22] = math.nan
    call.v_cache[0, 0, 22] = math.nan
    spoilt = call.run()
    assert same_bits(spoilt[:, :2], clean[:, :2]) and spoilt[:, 2].isnan().all()


@pytest.mark.parametrize("part", ["k_scale", "v_scale"])
@pytest.mark.parametrize("cache", [I8, F8])
def test_a_nan_scale_reaches_only_the_queries_that_see_it(serving, cache, part):
    """So `kv_append_` marks a token that was not finite."""
    call = attention_call([20], T=3, heads=2, kv_heads=1, D=32, cache=cache)
    clean = call.run()
    call.options[part][0, 0, 22] = math.nan
    spoilt = call.run()
    assert same_bits(spoilt[:, :2], clean[:, :2]) and spoilt[:, 2].isnan().all()


def test_keys_that_overflow_weigh_nothing(serving):
    """q.k = -inf at all keys, at a whole split, and at some keys of each split."""
    call = attention_call([300, 300, 300], heads=2, kv_heads=1, D=32)
    call.q = call.q.abs() * 1e38
    call.k_cache[0] = -call.k_cache[0].abs() - 100
    call.k_cache[1, :, :256] = -call.k_cache[1, :, :256].abs() - 100
    call.k_cache[1, :, 256:] = 0
    call.k_cache[2, :, ::2] = -call.k_cache[2, :, ::2].abs() - 100
    call.k_cache[2, :, 1::2] = 0
    found = call.run()
    assert (found[0] == 0).all()
    assert (found[1] - call.v_cache[1, 0, 256:301].mean(0)).abs().max() < 1e-5
    assert (found[2] - call.v_cache[2, 0, 1:301:2].mean(0)).abs().max() < 1e-5


@pytest.mark.parametrize("key", [math.inf, math.nan])
def test_other_keys_that_are_not_finite_give_nan(serving, key):
    call = attention_call([300], heads=2, kv_heads=1, D=32)
    call.q = call.q.abs()
    call.k_cache[0, 0, 7] = key
    assert call.run().isnan().all()


def test_strided_queries(serving):
    """A slice of a fused projection."""
    call = attention_call([40, 3], T=2, heads=4)
    expected = call.run()
    fused = torch.full((2, 2, 8, 64), math.nan)
    fused[:, :, 2:6] = call.q
    call.q = fused[:, :, 2:6]
    assert same_bits(call.run(), expected)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_give_the_same_bits(threads):
    """One key head (its splits are shared out) and many (its heads are)."""
    before = torch.get_num_threads()
    for case in (
        dict(length=[4000], heads=4, kv_heads=1),
        dict(length=[2000, 3, 700], T=20, heads=4, kv_heads=1, window=1500),
        dict(length=[900] * 6, heads=8, kv_heads=4),
    ):
        call = attention_call(**case, dtype=BF16)
        try:
            torch.set_num_threads(1)
            alone = call.run()
            torch.set_num_threads(threads)
            assert same_bits(call.run(), alone)
        finally:
            torch.set_num_threads(before)


@pytest.mark.skipif(len(testing.cpu_isas()) < 2, reason="one instruction set only")
@pytest.mark.parametrize("isa", [name for name in testing.cpu_isas() if name != "scalar"])
@pytest.mark.parametrize("name", COMPANY)
def test_instruction_sets_agree_to_the_bit(isa, name):
    call = attention_call(**COMPANY[name])
    with testing.cpu_isa("scalar"):
        expected = call.run()
    with testing.cpu_isa(isa):
        assert same_bits(call.run(), expected)


@pytest.mark.parametrize("name", ["causal", "paged", "rotary and norm"])
def test_opcheck(serving, name):
    if serving in INTERPRETED:
        pytest.skip("too many programs for the interpreter")
    call = attention_call(**SMALL[name])
    args = (call.q, call.k_cache, call.v_cache, call.length)
    torch.library.opcheck(torch.ops.ardiff.kv_attention.default, args, call.options)


def test_compile_fullgraph(monkeypatch):
    """One append and one attention, compiled whole: offset views keep their values."""
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    call = attention_call([40, 3], T=2, dtype=BF16)
    new = torch.randn(3, 2, 4, 64, dtype=BF16)[1:]

    def step(q, new, k_cache, v_cache, length):
        caches = torch.ops.ardiff.kv_append(new[:, :, :2], new[:, :, 2:], k_cache, v_cache, length)
        return torch.ops.ardiff.kv_attention(q, *caches[:2], length), caches[0]

    torch.compiler.reset()
    args = (call.q, new, call.k_cache, call.v_cache, call.length)
    for a, b in zip(torch.compile(step, fullgraph=True)(*args), step(*args), strict=True):
        assert same_bits(a, b)
