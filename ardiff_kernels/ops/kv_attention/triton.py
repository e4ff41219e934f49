"""Triton kernels of `kv_attention`: one program per split of 256 keys, then one kernel that merges.

The queries of a key head stand in tiles of 16, the least that the matrix units take, so that up to
16 of them share each load of keys and values. What a tile of queries does with a tile of keys is in
`triton_tile.py`.

Nothing depends on what else is computed: a tile of keys is used by its own absolute position, and
splits merge in their order. A query's bits are the same for any number of new tokens, batch,
capacity and block table.
"""

import math

import torch
import triton
import triton.language as tl

from .._shared.triton.common import narrow
from .._shared.triton.kv import (
    cache_view,
    head_columns,
    on_device_of,
    places,
    places_of,
    prepared_heads,
    row_fits,
    row_of,
    start_of,
    token_strides,
)
from .reference import SPLIT
from .triton_tile import attend

_SPLIT = tl.constexpr(SPLIT)
_WORKSPACE = 2**26  # float32 elements; larger batches are launched part by part


@triton.jit(do_not_specialize=[
    "q_stride_b", "q_stride_t", "q_stride_h", "first_row", "G", "T", "N", "S", "M", "P", "half",
    "tiles", "splits", "heads", "window",
])  # fmt: skip
def kv_attention_kernel(
    q_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, high_ptr, sum_ptr, acc_ptr,
    length_ptr, count_ptr, table_ptr, position_ptr, norm_ptr, cos_ptr, sin_ptr,
    q_stride_b, q_stride_t, q_stride_h, first_row, G, T, N, S, M, P, half,
    tiles, splits, heads, window, eps, scale,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, KIND: tl.constexpr, Q_PARTS: tl.constexpr,
    P_PARTS: tl.constexpr, ONE_BLOCK: tl.constexpr, D: tl.constexpr,
    DP: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0) % tiles
    head = tl.program_id(0) // tiles % heads
    row = tl.program_id(0) // tiles // heads // splits
    slot = tl.program_id(0) // tiles // heads % splits
    b = (first_row + row).to(tl.int64)
    length, count, sound = row_of(b, length_ptr, count_ptr, T)
    end = length + count
    capacity = tl.full((), 0, tl.int64) + S
    if table_ptr is not None:
        capacity *= M
    t_first = tile * BQ // G
    t_last = tl.minimum((tile * BQ + BQ - 1) // G, count - 1)
    if (sound == 0) | (end > capacity) | (t_first >= count) | (N == 0):
        return
    index = tile * BQ + tl.arange(0, BQ)
    t = index // G
    real = t < count
    lo = tl.zeros([BQ], tl.int64)
    hi = lo + end
    wide_hi = end
    common_hi = end
    if CAUSAL:
        hi = length + t + 1
        wide_hi = length + t_last + 1
        common_hi = length + t_first + 1
    split = slot.to(tl.int64)
    wide_lo = tl.full((), 0, tl.int64)
    common_lo = wide_lo
    if WINDOWED:
        lo = tl.maximum(length + t - window + 1, 0)
        wide_lo = tl.maximum(length + t_first - window + 1, 0)
        common_lo = tl.maximum(length + t_last - window + 1, 0)
        split += tl.maximum(length - window + 1, 0) // _SPLIT
    hi = tl.where(real, hi, 0)
    begin = tl.maximum(wide_lo, split * _SPLIT)
    stop = tl.minimum(wide_hi, split * _SPLIT + _SPLIT)
    if begin >= stop:
        return
    head_of_query = head * G + index % G
    start = start_of(b, t, head_of_query, q_stride_b, q_stride_t, q_stride_h, ALIGN)
    position = length + t
    if position_ptr is not None:
        position = tl.load(position_ptr + b * T + t, mask=real, other=0).to(tl.int64)
    q = prepared_heads(
        q_ptr, start[:, None], real[:, None], position[:, None], norm_ptr, cos_ptr, sin_ptr, P,
        half, eps, D, DP,
    )  # fmt: skip
    high = tl.full([BQ], float("-inf"), tl.float32)
    sums = tl.zeros([BQ, 16], tl.float32)
    acc = tl.zeros([BQ, DP], tl.float32)
    tiles_of_split = split * _SPLIT + tl.arange(0, _SPLIT // BK) * BK
    blocks, _ = places(b, tiles_of_split, tiles_of_split < stop, table_ptr, N, S, M)
    # Tiles [full, full_end) are seen whole by every query; at the edges masks are needed.
    full = tl.cdiv(tl.maximum(begin, common_lo), BK) * BK
    full_end = tl.maximum(tl.minimum(stop, common_hi) // BK * BK, full)
    if WINDOWED:
        for first in tl.range(begin // BK * BK, tl.minimum(full, stop), BK, num_stages=1):
            high, sums, acc = attend(
                q, high, sums, acc, lo, hi, blocks, b, head, heads, first, begin, stop, scale,
                k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table_ptr, N, S, M,
                True, KIND, Q_PARTS, P_PARTS, ONE_BLOCK, D, DP, BK,
            )  # fmt: skip
    for first in range(full, full_end, BK):
        high, sums, acc = attend(
            q, high, sums, acc, lo, hi, blocks, b, head, heads, first, begin, stop, scale,
            k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table_ptr, N, S, M,
            False, KIND, Q_PARTS, P_PARTS, ONE_BLOCK, D, DP, BK,
        )  # fmt: skip
    for first in tl.range(full_end, stop, BK, num_stages=1):
        high, sums, acc = attend(
            q, high, sums, acc, lo, hi, blocks, b, head, heads, first, begin, stop, scale,
            k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table_ptr, N, S, M,
            True, KIND, Q_PARTS, P_PARTS, ONE_BLOCK, D, DP, BK,
        )  # fmt: skip
    query = t * (heads * G) + head_of_query
    at = (row.to(tl.int64) * splits + slot) * (T * heads * G) + query
    d = tl.arange(0, DP)
    tl.store(high_ptr + at, high, mask=real)
    tl.store(sum_ptr + at, tl.max(sums, 1), mask=real)
    target = acc_ptr + tl.multiple_of(at * D, 8)[:, None] + d[None, :]
    tl.store(target, acc, mask=real[:, None] & (d < D)[None, :])


@triton.jit(do_not_specialize=[
    "first_row", "T", "N", "S", "M", "P", "splits", "heads", "window",
])  # fmt: skip
def kv_attention_merge_kernel(
    out_ptr, high_ptr, sum_ptr, acc_ptr, length_ptr, count_ptr, table_ptr, position_ptr,
    first_row, T, N, S, M, P, splits, heads, window,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    BQ: tl.constexpr, BS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    queries = T * heads
    tiles = tl.cdiv(queries, BQ)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    b = first_row + row
    index = tl.program_id(0) % tiles * BQ + tl.arange(0, BQ)
    t = index // heads
    length, count, sound = row_of(b, length_ptr, count_ptr, T)
    fits = row_fits(b, length, count, sound, table_ptr, position_ptr, T, N, S, M, P)
    real = fits & (index < queries) & (t < count)
    # Splits [low, top) of a query, by their slots in the workspace.
    low = tl.zeros([BQ], tl.int64)
    top = low + length + count
    if CAUSAL:
        top = length + t + 1
    top = (top + _SPLIT - 1) // _SPLIT
    if WINDOWED:
        row_first = tl.maximum(length - window + 1, 0) // _SPLIT
        low = tl.maximum(length + t - window + 1, 0) // _SPLIT - row_first
        top -= row_first
    top = tl.where(real, top, 0)
    last = tl.max(top, 0)
    at = row * splits * queries + index
    highs = tl.full([BQ, BS], float("-inf"), tl.float32)
    for first in range(0, last, BS):
        s = first + tl.arange(0, BS)
        seen = (s[None, :] >= low[:, None]) & (s[None, :] < top[:, None])
        each = high_ptr + at[:, None] + s[None, :].to(tl.int64) * queries
        highs = tl.maximum(highs, tl.load(each, mask=seen, other=float("-inf")))
    high = tl.max(highs, 1)
    high = tl.where(high == float("-inf"), 0.0, high)
    total = tl.zeros([BQ], tl.float32)
    acc = tl.zeros([BQ, DP], tl.float32)
    d = tl.arange(0, DP)[None, :]
    for first in range(0, last, UNROLL):
        for i in tl.static_range(UNROLL):
            s = first + i
            seen = (s >= low) & (s < top)
            where = at + s.to(tl.int64) * queries
            weight = tl.exp2(tl.load(high_ptr + where, mask=seen, other=float("-inf")) - high)
            total = tl.fma(weight, tl.load(sum_ptr + where, mask=seen, other=0.0), total)
            source = acc_ptr + tl.multiple_of(where * D, 8)[:, None] + d
            part = tl.load(source, mask=seen[:, None] & (d < D), other=0.0)
            acc = tl.fma(tl.zeros_like(part) + weight[:, None], part, acc)
    inverse = tl.where(total == 0.0, 0.0, tl.div_rn(1.0, tl.where(total == 0.0, 1.0, total)))
    target = out_ptr + tl.multiple_of((b * queries + index) * D, 8)[:, None] + d
    result = narrow(acc * inverse[:, None], out_ptr.dtype.element_ty)
    tl.store(target, result, mask=(index < queries)[:, None] & (d < D))


def parts(q: torch.dtype, cache: torch.dtype, prepared: bool) -> tuple[int, int]:
    """bfloat16 parts of a query and of a weight; 0: the product is float32's own."""
    if cache == torch.float32:
        return 0, 0
    if q == torch.float32:
        return 3, 3
    return (2 if prepared else 1), 2


def key_tile(
    columns: int, cache: torch.dtype, interpreted: bool = False
) -> tuple[dict[str, int], dict[str, int]]:
    """Queries and keys of a tile, and how it is launched; by the cache alone."""
    if interpreted:
        return dict(BQ=16, BK=SPLIT), {}
    if cache == torch.float32:
        return dict(BQ=16, BK=16), dict(num_warps=8, num_stages=2)
    return dict(BQ=16, BK=32 if columns <= 128 else 16), dict(num_warps=4, num_stages=4)


def merge_tile(queries: int, columns: int, interpreted: bool = False) -> dict[str, int]:
    """Queries of a program that merges, and the splits that it reads at a time."""
    most = min(triton.next_power_of_2(queries), (1 << 14) // columns)
    return dict(BQ=most if interpreted else 1, BS=64, UNROLL=8)


def slots(capacity: int, tokens: int, window: int) -> int:
    """The most splits of a row: what its keys fill, or a window's, wherever that begins."""
    whole = triton.cdiv(capacity, SPLIT)
    return min(whole, triton.cdiv(window + tokens - 1, SPLIT) + 1) if window else whole


def kv_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    length: torch.Tensor,
    *,
    count: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    position: torch.Tensor | None = None,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    q_norm: torch.Tensor | None = None,
    norm_eps: float = 1e-6,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    scale: float | None = None,
    window: int = 0,
    causal: bool = True,
) -> torch.Tensor:
    B, T, query_heads, D = q.shape
    heads = k_cache.shape[1]
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if B == 0:
        return out
    interpreted = not isinstance(kv_attention_kernel, triton.JITFunction)
    (keys, kind), (values, _) = cache_view(k_cache), cache_view(v_cache)
    strides, align = token_strides(q)
    columns = head_columns(D)
    prepared = cos is not None or q_norm is not None
    q_parts, p_parts = parts(q.dtype, k_cache.dtype, prepared)
    group, queries = query_heads // heads, T * query_heads
    tile, options = key_tile(columns, k_cache.dtype, interpreted)
    merged = merge_tile(queries, columns, interpreted)
    N, S, M = places_of(k_cache, block_table)
    P, half = (0, 0) if cos is None else cos.shape
    tiles = triton.cdiv(T * group, tile["BQ"])
    splits = slots(S * M, T, window)
    rows = max(1, min(B, _WORKSPACE // (splits * queries * D)))
    factor = (D**-0.5 if scale is None else scale) / math.log(2)
    one_block = block_table is None or S % tile["BK"] == 0
    flags = dict(CAUSAL=causal, WINDOWED=window > 0, D=D, DP=columns)

    def workspace(*shape: int) -> torch.Tensor:
        return torch.empty((rows, splits, queries, *shape), dtype=torch.float32, device=q.device)

    partial = (workspace(), workspace(), workspace(D))
    for first in range(0, B, rows):
        n = min(rows, B - first)
        with on_device_of(q):
            kv_attention_kernel[(n * splits * heads * tiles,)](
                q, keys, values, k_scale, v_scale, *partial,
                length, count, block_table, position, q_norm, cos, sin,
                *strides, first, group, T, N, S, M, P, half, tiles, splits, heads, window,
                norm_eps, factor,
                **flags, KIND=kind, Q_PARTS=q_parts, P_PARTS=p_parts, ONE_BLOCK=one_block,
                ALIGN=align, **tile, **options,
            )  # fmt: skip
            kv_attention_merge_kernel[(n * triton.cdiv(queries, merged["BQ"]),)](
                out, *partial, length, count, block_table, position,
                first, T, N, S, M, P, splits, query_heads, window,
                **flags, **merged, num_warps=1,
            )  # fmt: skip
    return out
