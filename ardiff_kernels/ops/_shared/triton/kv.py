"""What the Triton kernels of `kv_append` and `kv_attention` share: new heads and places in a cache.

A head is `D` of the `DP` columns of a tile (the next power of two); a row of a tile is a head of a
token. ALIGN divides all strides and D: left to the compiler it would set the order of sums.
"""

import math
from contextlib import nullcontext

import torch
import triton
import triton.language as tl

from ..kv_cache import QUANTIZED
from .common import widen

FLOAT, INT8, FLOAT8 = 0, 1, 2
_CHUNK = tl.constexpr(512)


@triton.jit
def row_of(b, length_ptr, count_ptr, T):
    """length and count of row b (int64), and whether they make sense."""
    length = tl.load(length_ptr + b).to(tl.int64)
    count = tl.full((), 0, tl.int64) + T
    if count_ptr is not None:
        count = tl.load(count_ptr + b).to(tl.int64)
    return length, count, (length >= 0) & (count >= 0) & (count <= T)


@triton.jit
def row_fits(b, length, count, sound, table_ptr, position_ptr, T, N, S, M, P):
    """Whether row b has room, names blocks that there are, and rotary positions below P (P = 0:
    no rotation)."""
    end = length + count
    capacity = tl.full((), 0, tl.int64) + S
    if table_ptr is not None:
        capacity *= M
    fits = sound & (end <= capacity)
    if P > 0:
        if position_ptr is None:
            fits &= (count == 0) | (end <= P)
        else:
            wrong = tl.zeros([_CHUNK], tl.int32)
            for first in range(0, T, _CHUNK):
                t = first + tl.arange(0, _CHUNK)
                real = (t < T) & (t < count)
                at = tl.load(position_ptr + b * T + t, mask=real, other=0)
                wrong |= ((at < 0) | (at >= P)).to(tl.int32)
            fits &= tl.max(wrong, 0) == 0
    if table_ptr is not None:
        used = tl.where(fits, (end + S - 1) // S, 0)
        wrong = tl.zeros([_CHUNK], tl.int32)
        for first in range(0, used, _CHUNK):
            i = first + tl.arange(0, _CHUNK)
            block = tl.load(table_ptr + b * M + i, mask=i < used, other=0)
            wrong |= ((block < 0) | (block >= N)).to(tl.int32)
        fits &= tl.max(wrong, 0) == 0
    return fits


@triton.jit
def places(b, position, mask, table_ptr, N, S, M):
    """Block (int64) and token in it of positions of row b; block 0 where it names none there is."""
    if table_ptr is None:
        return b + position * 0, position
    else:
        position = position.to(tl.int32)
        block = tl.load(table_ptr + b * M + position // S, mask=mask, other=0)
        block = tl.where((block >= 0) & (block < N), block, 0)
        return block.to(tl.int64), (position % S).to(tl.int64)


@triton.jit
def start_of(b, t, head, stride_b, stride_t, stride_h, ALIGN: tl.constexpr):
    """Offset (int64) of a head of token t of row b; the strides are in units of ALIGN."""
    return (b * stride_b + t.to(tl.int64) * stride_t + head.to(tl.int64) * stride_h) * ALIGN


@triton.jit
def prepared_heads(
    x_ptr, start, real, position, norm_ptr, cos_ptr, sin_ptr, P, half, eps,
    D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """Heads beginning at `start` `[rows, 1]`, RMS-normed and rotated: float32 `[rows, DP]`.

    Rows that are not `real` are zero. The pair of a dimension is read a second time.
    """
    d = tl.arange(0, DP)[None, :]
    inside = real & (d < D)
    x = widen(tl.load(x_ptr + start + d, mask=inside, other=0.0))
    factor = 1.0
    if norm_ptr is not None:
        mean = tl.sum(x * x, 1, keep_dims=True) / D
        factor = tl.div_rn(1.0, tl.sqrt_rn(mean + eps))
        x = x * factor * tl.load(norm_ptr + d, mask=d < D, other=0.0)
    if cos_ptr is not None:
        first = d < half
        turned = d < 2 * half
        pair = tl.where(first, d + half, d - half)
        known = real & (position >= 0) & (position < P) & turned
        at = tl.where(known, position.to(tl.int64), 0) * half + tl.where(first, d, d - half)
        cos = tl.load(cos_ptr + at, mask=known, other=1.0)
        sin = tl.load(sin_ptr + at, mask=known, other=0.0)
        y = widen(tl.load(x_ptr + start + pair, mask=inside & turned, other=0.0))
        if norm_ptr is not None:
            y = y * factor * tl.load(norm_ptr + pair, mask=turned, other=0.0)
        x = tl.fma(x, cos, y * tl.where(first, -sin, sin))
    return x


def cache_view(cache: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The cache as the kernels take it (codes as int8), and the kind of its elements."""
    if cache.dtype not in QUANTIZED:
        return cache, FLOAT
    return cache.view(torch.int8), INT8 if cache.dtype == torch.int8 else FLOAT8


def token_strides(x: torch.Tensor) -> tuple[list[int], int]:
    """Strides of a `[B, T, H, D]` tensor, zero where a dimension has one entry, in units of what
    divides them and the address: 8 or 1."""
    strides = [0 if n == 1 else s for n, s in zip(x.shape[:3], x.stride()[:3], strict=True)]
    aligned = not any(s % 8 for s in strides) and x.data_ptr() % (8 * x.element_size()) == 0
    unit = 8 if aligned else 1
    return [s // unit for s in strides], unit


def places_of(k_cache: torch.Tensor, block_table: torch.Tensor | None) -> tuple[int, int, int]:
    """N, S and M of a cache."""
    return k_cache.shape[0], k_cache.shape[2], 1 if block_table is None else block_table.shape[1]


def on_device_of(x: torch.Tensor):
    """Make the tensor's GPU the current one for a launch."""
    elsewhere = x.is_cuda and x.device.index != torch.cuda.current_device()
    return torch.cuda.device(x.device) if elsewhere else nullcontext()


def head_columns(d: int) -> int:
    """Columns of a tile for heads of d dimensions."""
    return 1 << math.ceil(math.log2(d))
