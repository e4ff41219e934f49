"""Triton kernels of `kv_attention`: one program a split of 256 keys, then one kernel that merges.

The queries of a key head stand in tiles of 16, the least that the matrix units take, so that up to
16 of them share each load of keys and values. The units multiply bfloat16 exactly and add in
float32: a float32 operand is the sum of up to three bfloat16 parts, each multiplied by itself, and
the codes of a quantised cache are exact in bfloat16. A float32 cache is multiplied in float32.

Nothing depends on what else is computed. A tile of keys is used by its own absolute position; sums
over keys are products with a matrix of ones, whose order is the hardware's; where all queries of a
tile see all keys no mask is applied, and the masks elsewhere change no bit. A query's bits are the
same for any number of new tokens, batch, capacity and block table.
"""

import math

import torch
import triton
import triton.language as tl

from .._triton_common import INTERPRETED, narrow, widen
from .._triton_dot import int8_operand, multiply, operand
from .._triton_kv import (
    FLOAT8,
    INT8,
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

_INT8 = tl.constexpr(INT8)
_FLOAT8 = tl.constexpr(FLOAT8)
_SPLIT = tl.constexpr(SPLIT)
_WORKSPACE = 2**26  # float32 elements; larger batches are launched part by part


@triton.jit
def loaded_operand(x, KIND: tl.constexpr):
    """Elements of the cache as an operand."""
    if KIND == _INT8:
        return int8_operand(x)
    elif KIND == _FLOAT8:
        word = x.to(tl.int32)
        magnitude = word & 0x7F
        value = (magnitude << 20).to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2^120
        value = tl.where(magnitude == 0x7F, float("nan"), value)
        return operand(tl.where(word < 0, -value, value), False)
    elif INTERPRETED:
        return widen(x)
    else:
        return x


@triton.jit
def places_of_tile(
    first, used, blocks, b, head, heads, table_ptr, N, S, M,
    ONE_BLOCK: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Index in the cache of the token at position `first`, and those of the BK keys from there less
    that. `blocks` are those of the split's tiles where a tile lies in ONE_BLOCK."""
    if ONE_BLOCK:
        block = b
        token = first
        if table_ptr is not None:
            mine = tl.arange(0, _SPLIT // BK) == (first % _SPLIT // BK).to(tl.int32)
            block = tl.sum(tl.where(mine, blocks, 0), 0)
            token = (first.to(tl.int32) % S).to(tl.int64)
        return (block * heads + head) * S + token, tl.arange(0, BK)
    else:
        block, token = places(b, first + tl.arange(0, BK), used, table_ptr, N, S, M)
        return tl.full((), 0, tl.int64), (block * heads + head) * S + token


@triton.jit
def load_keys(
    ptr, base, key, used, FIRST: tl.constexpr, EDGE: tl.constexpr, KIND: tl.constexpr,
    D: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Dimensions [FIRST, FIRST + COLUMNS) of keys or values as an operand."""
    d = FIRST + tl.arange(0, COLUMNS)[None, :]
    at = ptr + tl.multiple_of(base * D, 8) + tl.multiple_of(key * D, 8)[:, None] + d
    if EDGE:
        x = tl.load(at, mask=used[:, None] & (d < D), other=0.0)
    elif D < FIRST + COLUMNS:
        x = tl.load(at, mask=d < D, other=0.0)
    else:
        x = tl.load(at)
    return loaded_operand(x, KIND)


@triton.jit
def load_scales(ptr, base, key, used, EDGE: tl.constexpr):
    if EDGE:
        return tl.load(ptr + base + key, mask=used, other=0.0)[None, :]
    else:
        return tl.load(ptr + base + key)[None, :]


@triton.jit
def finite(x):
    """Where a bfloat16 or float32 is finite."""
    if x.dtype == tl.bfloat16:
        return (x.to(tl.int16, bitcast=True) & 0x7F80) != 0x7F80
    else:
        return tl.abs(x) < float("inf")


@triton.jit
def spoil(
    acc, key, lo, hi, b, head, heads, v_ptr, table_ptr, N, S, M,
    KIND: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """acc, NaN where a query sees this key and its value is not finite."""
    d = tl.arange(0, DP)
    block, token = places(b, key, True, table_ptr, N, S, M)
    at = v_ptr + ((block * heads + head) * S + token) * D + d
    seen = (key >= lo) & (key < hi)
    v = loaded_operand(
        tl.load(at, mask=(d < D) & (tl.max(seen.to(tl.int32), 0) != 0), other=0.0), KIND
    )
    return tl.where(seen[:, None] & (finite(v) == 0)[None, :], float("nan"), acc)


@triton.jit
def attend(
    q, high, sums, acc, lo, hi, blocks, b, head, heads, first, begin, stop, scale,
    k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table_ptr, N, S, M,
    EDGE: tl.constexpr, KIND: tl.constexpr, Q_PARTS: tl.constexpr, P_PARTS: tl.constexpr,
    ONE_BLOCK: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """Add the keys [first, first + BK), of which those in [begin, stop) are used, and, at an EDGE,
    by a query those in its own [lo, hi)."""
    first = tl.full((), 0, tl.int64) + first  # the interpreter has a Python int
    lane = tl.arange(0, BK)
    used = (lane >= begin - first) & (lane < stop - first)
    base, key = places_of_tile(
        first, used, blocks, b, head, heads, table_ptr, N, S, M, ONE_BLOCK, BK
    )
    s = tl.zeros([q.shape[0], BK], tl.float32)
    if Q_PARTS == 0 and DP > 128:
        # In halves, made of q at each tile (which the condition is for): all of it as an operand
        # would not fit in the registers.
        q = tl.where(first < 0, 0.0, q)
        q_0, q_1 = tl.split(tl.permute(tl.reshape(q, [q.shape[0], 2, DP // 2]), (0, 2, 1)))
        k_0 = load_keys(k_ptr, base, key, used, 0, EDGE, KIND, D, DP // 2)
        s = multiply(q_0, tl.trans(k_0), s, Q_PARTS)
        k_1 = load_keys(k_ptr, base, key, used, DP // 2, EDGE, KIND, D, DP // 2)
        s = multiply(q_1, tl.trans(k_1), s, Q_PARTS)
    else:
        k = load_keys(k_ptr, base, key, used, 0, EDGE, KIND, D, DP)
        s = multiply(q, tl.trans(k), s, Q_PARTS)
    if k_scale_ptr is not None:
        s = s * load_scales(k_scale_ptr, base, key, used, EDGE)
    # In base 2. The product before the sum is rounded here and fused below, in both kinds of tile.
    level = s * scale
    if EDGE:
        seen = (lane[None, :] >= (lo - first).to(tl.int32)[:, None]) & (
            lane[None, :] < (hi - first).to(tl.int32)[:, None]
        )
        level = tl.where(seen, level, float("-inf"))
    most = tl.maximum(high, tl.max(level, 1))
    shift = tl.where(most == float("-inf"), 0.0, most)
    old = tl.exp2(high - shift)
    p = tl.exp2(tl.fma(s, tl.zeros_like(s) + scale, tl.zeros_like(s) - shift[:, None]))
    if EDGE:
        p = tl.where(seen, p, 0.0)
    ones = operand(tl.full([BK, 16], 1.0, tl.float32), P_PARTS == 0)
    sums = multiply(p, ones, sums * old[:, None], P_PARTS)
    if v_scale_ptr is not None:
        p = p * load_scales(v_scale_ptr, base, key, used, EDGE)
        if EDGE:
            p = tl.where(seen, p, 0.0)
    acc = acc * old[:, None]
    v = load_keys(v_ptr, base, key, used, 0, EDGE, KIND, D, DP)
    if EDGE and KIND != _INT8:
        # A value that is not finite spoils the queries that see it and no other.
        good = finite(v)
        v = tl.where(good, v, 0.0).to(v.dtype)
        if tl.min(tl.min(good.to(tl.int32), 1), 0) == 0:
            for j in range(0, BK):
                acc = spoil(
                    acc, first + j, lo, hi, b, head, heads, v_ptr, table_ptr, N, S, M, KIND, D, DP
                )
    return most, sums, multiply(p, v, acc, P_PARTS)


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
