"""`kv_attention` on every implementation: against float64, PyTorch's own attention as the measure,
and to the bit where only the company of a row changes."""

from __future__ import annotations

import math

import pytest
import torch

from ardiff_kernels import testing
from ardiff_kernels.dispatch import backends
from ardiff_kernels.testing import same_bits
from tests.kernels.kv_attention.calls import (
    BF16,
    CASES,
    COMPANY,
    F8,
    I8,
    INTERPRETED,
    SMALL,
    AttentionCall,
    assert_nan_scale_reaches_those_that_see_it,
    assert_overflow_weighs_nothing,
    attention_call,
    excess,
)


@pytest.fixture
def serving(implementation):
    """The implementation, where it has the op."""
    name, _, variant = implementation.partition("-")
    if reason := backends.unusable("kv_attention", name, "cuda" if variant == "gpu" else "cpu"):
        pytest.skip(f"{name}: {reason}")
    return implementation


@pytest.mark.parametrize("name", CASES)
def test_error_is_within_twice_that_of_pytorch(serving, name):
    if serving in INTERPRETED and name not in SMALL:
        pytest.skip("too many programs for the interpreter")
    call = attention_call(**CASES[name])
    assert excess(call.functional(), call) <= 1


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
        wrong.args["length"] = wrong.args["length"] - 1
    elif name == "rotary":
        at = wrong.args["length"][:, None] + torch.arange(3)
        wrong.options["position"] = (at - 1).int()
    else:
        wrong.args["q"] = wrong.args["q"].roll(1, 2)
    assert excess(wrong.functional(), call) > 100


@pytest.mark.parametrize("name", COMPANY)
def test_a_row_alone_has_the_same_bits(serving, name):
    if serving in INTERPRETED and name != next(iter(COMPANY)):
        pytest.skip("too many programs for the interpreter")
    call = attention_call(**COMPANY[name])
    together = call.functional()
    for b in range(len(call.args["q"])):
        assert same_bits(call.row(b).functional(), together[b : b + 1])


@pytest.mark.parametrize("name", COMPANY)
def test_another_capacity_gives_the_same_bits(serving, name):
    if serving in INTERPRETED and name != next(iter(COMPANY)):
        pytest.skip("too many programs for the interpreter")
    wide = attention_call(**COMPANY[name], capacity=1024)
    call = attention_call(**COMPANY[name])
    if "block" in COMPANY[name]:
        assert wide.options["block_table"].shape[1] > call.options["block_table"].shape[1]
    else:
        assert wide.args["k_cache"].shape[2] > call.args["k_cache"].shape[2]
    assert same_bits(wide.functional(), call.functional())


@pytest.mark.parametrize("name", COMPANY)
def test_tokens_one_by_one_have_the_same_bits(serving, name):
    if serving in INTERPRETED and name != next(iter(COMPANY)):
        pytest.skip("too many programs for the interpreter")
    call = attention_call(**COMPANY[name])
    together = call.functional()
    for t in range(call.args["q"].shape[1]):
        assert same_bits(call.token(t).functional(), together[:, t : t + 1])


def test_pages_give_the_bits_of_a_contiguous_cache(serving):
    call, paged = (attention_call([300, 9], kv_heads=1, block=n) for n in (0, 16))
    assert same_bits(call.functional(), paged.functional())


def test_a_nan_key_reaches_only_the_queries_that_see_it(serving):
    call = attention_call([20], T=3, heads=2, kv_heads=1)
    clean = call.functional()
    call.args["k_cache"][0, 0, 22] = math.nan
    call.args["v_cache"][0, 0, 22] = math.nan
    spoilt = call.functional()
    assert same_bits(spoilt[:, :2], clean[:, :2]) and spoilt[:, 2].isnan().all()


@pytest.mark.parametrize("part", ["k_scale", "v_scale"])
@pytest.mark.parametrize("cache", [I8, F8])
def test_a_nan_scale_reaches_only_the_queries_that_see_it(serving, cache, part):
    assert_nan_scale_reaches_those_that_see_it(AttentionCall.functional, cache, part)


def test_keys_that_overflow_weigh_nothing(serving):
    assert_overflow_weighs_nothing(AttentionCall.functional)


@pytest.mark.parametrize("key", [math.inf, math.nan])
def test_other_keys_that_are_not_finite_give_nan(serving, key):
    call = attention_call([300], heads=2, kv_heads=1, D=32)
    call.args["q"] = call.args["q"].abs()
    call.args["k_cache"][0, 0, 7] = key
    assert call.functional().isnan().all()


def test_strided_queries(serving):
    """A slice of a fused projection."""
    call = attention_call([40, 3], T=2, heads=4)
    expected = call.functional()
    fused = torch.full((2, 2, 8, 64), math.nan)
    fused[:, :, 2:6] = call.args["q"]
    call.args["q"] = fused[:, :, 2:6]
    assert same_bits(call.functional(), expected)


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
            alone = call.functional()
            torch.set_num_threads(threads)
            assert same_bits(call.functional(), alone)
        finally:
            torch.set_num_threads(before)


@pytest.mark.skipif(len(testing.cpu_isas()) < 2, reason="one instruction set only")
@pytest.mark.parametrize("isa", [name for name in testing.cpu_isas() if name != "scalar"])
@pytest.mark.parametrize("name", COMPANY)
def test_instruction_sets_agree_to_the_bit(isa, name):
    call = attention_call(**COMPANY[name])
    with testing.cpu_dots("common"):
        with testing.cpu_isa("scalar"):
            expected = call.functional()
        with testing.cpu_isa(isa):
            assert same_bits(call.functional(), expected)


@pytest.mark.parametrize("name", ["causal", "paged", "rotary and norm"])
def test_opcheck(serving, name):
    if serving in INTERPRETED:
        pytest.skip("too many programs for the interpreter")
    call = attention_call(**SMALL[name])
    args = tuple(call.args.values())
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
    args = (call.args["q"], new, call.args["k_cache"], call.args["v_cache"], call.args["length"])
    for a, b in zip(torch.compile(step, fullgraph=True)(*args), step(*args), strict=True):
        assert same_bits(a, b)
