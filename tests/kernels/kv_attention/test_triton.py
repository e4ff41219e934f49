"""What the Triton kernels of `kv_append` and `kv_attention` do beside what every implementation
does: rows that do not fit are left alone, and large batches are launched part by part."""

from __future__ import annotations

import pytest
import torch

from ardiff_kernels.testing import same_bits
from tests.kernels.kv_append.calls import WRONG, assert_left_alone
from tests.kernels.kv_attention.calls import BF16, attention_call

pytest.importorskip("triton")
from ardiff_kernels.dispatch import backends  # noqa: E402

pytestmark = pytest.mark.skipif(
    bool(backends.unusable("kv_attention", "triton", "cpu")), reason="triton is not interpreted"
)


@pytest.mark.parametrize("name", WRONG)
def test_a_row_that_does_not_fit_is_left_alone(name):
    from ardiff_kernels.ops.kv_append.triton import kv_append
    from ardiff_kernels.ops.kv_attention.triton import kv_attention

    assert_left_alone(name, kv_append, kv_attention)


def test_parts_of_a_batch_give_the_same_bits(monkeypatch):
    from ardiff_kernels.ops.kv_attention import triton

    call = attention_call([40, 3, 300], kv_heads=1, heads=2, dtype=BF16)
    tensors = (call.args["q"], call.args["k_cache"], call.args["v_cache"], call.args["length"])
    whole = triton.kv_attention(*tensors, **call.options)
    monkeypatch.setattr(triton, "_WORKSPACE", 1)
    assert same_bits(triton.kv_attention(*tensors, **call.options), whole)


def test_pages_of_whole_tiles_give_the_bits_of_a_contiguous_cache():
    """Then a tile has one block, which is read once for all tiles of a split."""
    from ardiff_kernels.ops.kv_attention.triton import kv_attention

    found = [
        kv_attention(*call.args.values(), **call.options)
        for call in (attention_call([700, 9], kv_heads=1, block=n) for n in (0, 256, 512))
    ]
    assert same_bits(found[0], found[1]) and same_bits(found[0], found[2])


def test_unaligned_queries():
    """Rows that begin at odd elements."""
    from ardiff_kernels.ops.kv_attention.triton import kv_attention

    call = attention_call([40, 3], T=2, kv_heads=1, rotary=32, norm=True)
    wide = torch.full((2, 2, 4, 67), float("nan"))
    wide[..., 1:65] = call.args["q"]
    expected = kv_attention(*call.args.values(), **call.options)
    call.args["q"] = wide[..., 1:65]
    found = kv_attention(*call.args.values(), **call.options)
    assert (found - expected).abs().max() <= 2.0**-20 * expected.abs().max()


def test_a_window_needs_few_slots():
    from ardiff_kernels.ops.kv_attention.triton import slots

    assert slots(8192, 1, 0) == 32
    assert slots(8192, 1, 256) == 2  # 256 keys touch two splits
    assert slots(8192, 64, 1) == 2
    assert slots(100, 64, 5000) == 1
