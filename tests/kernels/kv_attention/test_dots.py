"""`kv_attention` of a bfloat16 cache and bfloat16 queries by dot products of bfloat16 pairs: the
CPU's own and their emulation, against float64 and against each other."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from ardiff_kernels import testing
from ardiff_kernels.testing import same_bits
from tests.kernels.kv_attention.calls import (
    BF16,
    CASES,
    COMPANY,
    F32,
    I8,
    AttentionCall,
    assert_overflow_weighs_nothing,
    attention_call,
    excess,
)

NATIVE, EMULATED = "avx512_bf16", "emulated_avx512_bf16"
WAYS = [name for name in (NATIVE, EMULATED) if name in testing.cpu_dots_here()]
IN_PAIRS = {
    name: {**case, "dtype": BF16, "cache": BF16}
    for name, case in CASES.items()
    if case.get("cache", case.get("dtype")) not in (I8, torch.float8_e4m3fn)
}
TOGETHER = {
    name: {**case, "dtype": BF16, "cache": BF16}
    for name, case in COMPANY.items()
    if case.get("cache") is None
}
pytestmark = pytest.mark.skipif(not WAYS, reason="the C++ CPU backend is not built")


@pytest.fixture(params=WAYS)
def way(request) -> Iterator[str]:
    with testing.cpu_dots(request.param):
        yield request.param


def rms(found: torch.Tensor, exact: torch.Tensor) -> float:
    return (found.double() - exact).square().mean().sqrt().item()


@pytest.mark.parametrize("name", IN_PAIRS)
def test_error_is_within_twice_that_of_pytorch(way, name):
    call = attention_call(**IN_PAIRS[name])
    found = call.functional()
    assert excess(found, call) <= 1
    if found.numel():
        exact = call.oracle()
        assert rms(found, exact) <= 2 * rms(call.sdpa(), exact) + 2.0**-24


@pytest.mark.skipif(NATIVE not in WAYS, reason="this CPU lacks AVX512-BF16")
@pytest.mark.parametrize("name", IN_PAIRS)
def test_the_emulation_gives_the_bits_of_the_instructions(name):
    call = attention_call(**IN_PAIRS[name])
    with testing.cpu_dots(EMULATED):
        expected = call.functional()
    with testing.cpu_dots(NATIVE):
        assert same_bits(call.functional(), expected)


@pytest.mark.skipif(NATIVE not in WAYS, reason="this CPU lacks AVX512-BF16")
def test_both_take_subnormal_numbers_for_zero():
    call = attention_call([300], heads=2, kv_heads=1, dtype=BF16)
    for part in ("k_cache", "v_cache"):
        call.args[part] = (call.args[part].float() * 2.0**-126).to(BF16)
    with testing.cpu_dots(EMULATED):
        expected = call.functional()
    with testing.cpu_dots(NATIVE):
        assert same_bits(call.functional(), expected)
    call.args["v_cache"] = torch.full_like(call.args["v_cache"], 2.0**-127)
    assert not call.functional().any()


def test_only_bfloat16_queries_and_caches_take_them(way):
    """Elsewhere the bits are those of float32 arithmetic. There is no variant of tiles."""
    for dtype, cache, takes in [(BF16, BF16, True), (F32, BF16, False), (BF16, F32, False)]:
        call = attention_call([300, 17], dtype=dtype, cache=cache)
        found = call.functional()
        with testing.cpu_dots("common"):
            assert same_bits(found, call.functional()) is not takes
        with testing.cpu_dots("emulated_amx"):
            assert same_bits(found, call.functional())


@pytest.mark.parametrize("name", TOGETHER)
def test_company_capacity_and_tokens_give_the_same_bits(way, name):
    call = attention_call(**TOGETHER[name])
    together = call.functional()
    assert same_bits(attention_call(**TOGETHER[name], capacity=1024).functional(), together)
    for b in range(len(call.args["q"])):
        assert same_bits(call.row(b).functional(), together[b : b + 1])
    for t in range(call.args["q"].shape[1]):
        assert same_bits(call.token(t).functional(), together[:, t : t + 1])


@pytest.mark.parametrize("block", [1, 7, 48, 256])
def test_pages_give_the_bits_of_a_contiguous_cache(way, block):
    call, paged = (attention_call([300, 9], T=2, dtype=BF16, D=72, block=n) for n in (0, block))
    assert same_bits(call.functional(), paged.functional())


@pytest.mark.parametrize("length", [20, 21, 254, 255])
@pytest.mark.parametrize("window", [0, 5, 6])
def test_a_nan_key_reaches_only_the_queries_that_see_it(way, length, window):
    """Whichever half of a pair of keys a query sees, at either end."""
    call = attention_call([length], T=4, heads=4, kv_heads=1, dtype=BF16, window=window)
    clean = call.functional()
    for key in range(length - 8, length + 4):
        spoilt = call.changed()
        for part in ("k_cache", "v_cache"):
            spoilt.args[part] = call.args[part].clone()
            spoilt.args[part][0, 0, key] = math.nan
        found = spoilt.functional()
        for t in range(4):
            last = length + t
            if key <= last and (not window or key > last - window):
                assert found[:, t].isnan().all()
            else:
                assert same_bits(found[:, t], clean[:, t])


def test_keys_that_overflow_weigh_nothing(way):
    assert_overflow_weighs_nothing(AttentionCall.functional, BF16)
