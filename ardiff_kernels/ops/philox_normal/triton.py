"""Triton kernel of `philox_normal`: one program writes a tile, one Philox quad per lane."""

import torch
import triton
import triton.language as tl

from .._shared.triton.common import one_normal, store_tile, tile
from .._shared.triton.launch import launch


@triton.jit(do_not_specialize=["counter"])
def philox_normal_kernel(
    out_ptr, key_ptr, stream_ptr, out_stride, counter, B, d, nd,
    BR: tl.constexpr, BD: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    sample, col, lane, mask = tile(B, d, nd, BR, BD, ALIGN)
    normal = one_normal(col, counter.to(tl.uint32), key_ptr, tl.load(stream_ptr + sample), BR, BD)
    store_tile(out_ptr, normal, sample, out_stride, col, lane, mask, ALIGN)


def philox_normal_(
    out: torch.Tensor, key: torch.Tensor, counter: int, stream: torch.Tensor
) -> None:
    # As a signed word the counter is always an i32 argument: one compiled kernel for all values.
    signed = counter - (1 << 32) if counter >= 1 << 31 else counter
    launch(philox_normal_kernel, (out,), (key, stream), signed)


def philox_normal(key: torch.Tensor, counter: int, stream: torch.Tensor, n: int) -> torch.Tensor:
    out = torch.empty(stream.shape[0], n, dtype=torch.float32, device=stream.device)
    philox_normal_(out, key, counter, stream)
    return out
