"""A tile of queries and a tile of keys: what `kv_attention`'s Triton kernel does again and again.

The matrix units multiply bfloat16 exactly and add in float32: a float32 operand is the sum of up to
three bfloat16 parts, each multiplied by itself, and the codes of a quantised cache are exact in
bfloat16. A float32 cache is multiplied in float32.

A query's results depend on its own keys alone. Sums over keys are products with a matrix of ones,
whose order is the hardware's; where all queries of a tile see all keys no mask is applied, and the
masks elsewhere change no bit.
"""

import triton
import triton.language as tl

from .._shared.triton.common import INTERPRETED, widen
from .._shared.triton.dot import int8_operand, multiply, operand
from .._shared.triton.kv import FLOAT8, INT8, places
from .reference import SPLIT

_INT8 = tl.constexpr(INT8)
_FLOAT8 = tl.constexpr(FLOAT8)
_SPLIT = tl.constexpr(SPLIT)


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
