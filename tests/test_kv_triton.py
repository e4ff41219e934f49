"""What the Triton kernels of `kv_append` and `kv_attention` do beside what every implementation
does: rows that do not fit are left alone, and large batches are launched part by part."""

from __future__ import annotations

import pytest
import torch
from kv_calls import BF16, attention_call, integers, random, same_bits

pytest.importorskip("triton")
from ardiff_kernels import _backends  # noqa: E402

pytestmark = pytest.mark.skipif(
    bool(_backends.unusable("kv_attention", "triton", "cpu")), reason="triton is not interpreted"
)

WRONG = {
    "negative length": dict(length=[-1, 5, 5]),
    "too long": dict(length=[15, 5, 5]),
    "count too large": dict(count=[3, 2, 1]),
    "negative count": dict(count=[-1, 2, 1]),
    "no such block": dict(table=[[0, 9, 9], [1, 2, 9], [3, 4, 9]]),
    "negative block": dict(table=[[-1, 7, 9], [1, 2, 9], [3, 4, 9]]),
    "no such position": dict(position=[[0, 8], [1, 2], [3, 4]]),
    "negative position": dict(position=[[-1, 0], [1, 2], [3, 4]]),
}


def options(length=(5, 5, 5), count=None, table=None, position=None) -> tuple[torch.Tensor, dict]:
    """length, and options; caches are [6, 1, 8, 32], or blocks of 4 of them."""
    found = {"cos": random(8, 8, 4), "sin": random(9, 8, 4)}
    if count is not None:
        found["count"] = integers(count)
    for name, value in (("block_table", table), ("position", position)):
        if value is not None:
            found[name] = torch.tensor(value, dtype=torch.int32)
    return integers(length), found


@pytest.mark.parametrize("name", WRONG)
def test_a_row_that_does_not_fit_is_left_alone(name):
    """Row 0 is wrong: nothing of it is written and its results are zero, the others are served."""
    from ardiff_kernels.ops.kv_append.triton import kv_append
    from ardiff_kernels.ops.kv_attention.triton import kv_attention

    length, given = options(**WRONG[name])
    size = 4 if "block_table" in given else 16
    k_cache, v_cache = random(1, 8, 1, size, 32), random(2, 8, 1, size, 32)
    k, v, q = random(3, 3, 2, 1, 32), random(4, 3, 2, 1, 32), random(5, 3, 2, 2, 32)
    keys, values, *_ = kv_append(k, v, k_cache, v_cache, length, **given)
    others = [given["block_table"][1:].flatten().clamp(max=7)] if size == 4 else [1, 2]
    changed = (keys != k_cache).flatten(1).any(1) | (values != v_cache).flatten(1).any(1)
    assert changed.any() and not changed[0]
    allowed = torch.zeros(8, dtype=torch.bool)
    for index in others:
        allowed[index] = True
    assert not (changed & ~allowed).any()
    out = kv_attention(q, keys, values, length, **given)
    assert (out[0] == 0).all() and (out[1:, 0] != 0).all()


def test_parts_of_a_batch_give_the_same_bits(monkeypatch):
    from ardiff_kernels.ops.kv_attention import triton

    call = attention_call([40, 3, 300], kv_heads=1, heads=2, dtype=BF16)
    tensors = (call.q, call.k_cache, call.v_cache, call.length)
    whole = triton.kv_attention(*tensors, **call.options)
    monkeypatch.setattr(triton, "_WORKSPACE", 1)
    assert same_bits(triton.kv_attention(*tensors, **call.options), whole)


def test_pages_of_whole_tiles_give_the_bits_of_a_contiguous_cache():
    """Then a tile has one block, which is read once for all tiles of a split."""
    from ardiff_kernels.ops.kv_attention.triton import kv_attention

    found = [
        kv_attention(call.q, call.k_cache, call.v_cache, call.length, **call.options)
        for call in (attention_call([700, 9], kv_heads=1, block=n) for n in (0, 256, 512))
    ]
    assert same_bits(found[0], found[1]) and same_bits(found[0], found[2])


def test_unaligned_queries():
    """Rows that begin at odd elements."""
    from ardiff_kernels.ops.kv_attention.triton import kv_attention

    call = attention_call([40, 3], T=2, kv_heads=1, rotary=32, norm=True)
    wide = torch.full((2, 2, 4, 67), float("nan"))
    wide[..., 1:65] = call.q
    expected = kv_attention(call.q, call.k_cache, call.v_cache, call.length, **call.options)
    call.q = wide[..., 1:65]
    found = kv_attention(call.q, call.k_cache, call.v_cache, call.length, **call.options)
    assert (found - expected).abs().max() <= 2.0**-20 * expected.abs().max()


def test_a_window_needs_few_slots():
    from ardiff_kernels.ops.kv_attention.triton import slots

    assert slots(8192, 1, 0) == 32
    assert slots(8192, 1, 256) == 2  # 256 keys touch two splits
    assert slots(8192, 64, 1) == 2
    assert slots(100, 64, 5000) == 1
