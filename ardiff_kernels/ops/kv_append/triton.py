"""Triton kernel of `kv_append`: one launch, a program for some heads of new tokens of one row.

The key is read, normed, rotated, quantised and stored, the value read, quantised and stored. A row
that does not fit is left alone, which every program of it finds out for itself.
"""

import torch
import triton
import triton.language as tl

from .._shared.triton.common import narrow, widen
from .._shared.triton.kv import (
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

_INT8 = tl.constexpr(INT8)
_FLOAT8 = tl.constexpr(FLOAT8)


@triton.jit
def quantized(x, KIND: tl.constexpr):
    """Codes `[rows, DP]` (int8 bits) and scales `[rows, 1]` of heads, as csrc/math/attention.h
    makes them."""
    LARGEST: tl.constexpr = 127.0 if KIND == _INT8 else 448.0
    magnitude = tl.abs(x)
    bad = tl.max((magnitude < float("inf")).to(tl.int32) ^ 1, 1, keep_dims=True) != 0
    most = tl.max(magnitude, 1, keep_dims=True)
    scale = tl.where(bad, float("nan"), tl.div_rn(most, tl.full(most.shape, LARGEST, tl.float32)))
    used = scale > 0.0
    code = tl.div_rn(x, tl.where(used, scale, 1.0) + tl.zeros_like(x))
    code = tl.where(used, tl.minimum(tl.maximum(code, -LARGEST), LARGEST), 0.0)
    if KIND == _INT8:
        bits = (code + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000  # + 1.5 * 2^23 rounds
    else:
        word = code.to(tl.int32, bitcast=True)
        m = word & 0x7FFFFFFF
        normal = ((m + 0x7FFFF + ((m >> 20) & 1)) >> 20) - 960
        # The last place of 2^14 is that of a subnormal.
        subnormal = (m.to(tl.float32, bitcast=True) + 16384.0).to(tl.int32, bitcast=True)
        bits = tl.where(m >= 0x3C800000, normal, subnormal - 0x46800000) | ((word >> 24) & -128)
    return bits.to(tl.int8), scale


@triton.jit
def store_heads(cache_ptr, scale_ptr, x, at, real, D: tl.constexpr, DP: tl.constexpr, KIND):
    """Store heads at token `at` `[rows, 1]` of the cache."""
    d = tl.arange(0, DP)[None, :]
    target = cache_ptr + tl.multiple_of(at * D, [8, 8]) + d
    if scale_ptr is None:
        tl.store(target, narrow(x, cache_ptr.dtype.element_ty), mask=real & (d < D))
    else:
        codes, scale = quantized(x, KIND)
        tl.store(target, codes, mask=real & (d < D))
        tl.store(scale_ptr + at, scale, mask=real)


@triton.jit(do_not_specialize=[
    "k_stride_b", "k_stride_t", "k_stride_h", "v_stride_b", "v_stride_t", "v_stride_h", "T", "H",
    "N", "S", "M", "P", "half",
])  # fmt: skip
def kv_append_kernel(
    k_ptr, v_ptr, k_cache_ptr, v_cache_ptr, k_scale_ptr, v_scale_ptr,
    length_ptr, count_ptr, table_ptr, position_ptr, norm_ptr, cos_ptr, sin_ptr,
    k_stride_b, k_stride_t, k_stride_h, v_stride_b, v_stride_t, v_stride_h,
    T, H, N, S, M, P, half, eps,
    KIND: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BR: tl.constexpr,
    K_ALIGN: tl.constexpr, V_ALIGN: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(T * H, BR)
    b = (tl.program_id(0) // tiles).to(tl.int64)
    index = tl.program_id(0) % tiles * BR + tl.arange(0, BR)[:, None]
    t = index // H
    head = index % H
    length, count, sound = row_of(b, length_ptr, count_ptr, T)
    fits = row_fits(b, length, count, sound, table_ptr, position_ptr, T, N, S, M, P)
    real = fits & (t < T) & (t < count)
    block, token = places(b, length + t, real, table_ptr, N, S, M)
    at = (block * H + head) * S + token
    position = length + t
    if position_ptr is not None:
        position = tl.load(position_ptr + b * T + t, mask=real, other=0).to(tl.int64)
    start = start_of(b, t, head, k_stride_b, k_stride_t, k_stride_h, K_ALIGN)
    key = prepared_heads(
        k_ptr, start, real, position, norm_ptr, cos_ptr, sin_ptr, P, half, eps, D, DP
    )
    store_heads(k_cache_ptr, k_scale_ptr, key, at, real, D, DP, KIND)
    start = start_of(b, t, head, v_stride_b, v_stride_t, v_stride_h, V_ALIGN)
    d = tl.arange(0, DP)[None, :]
    value = widen(tl.load(v_ptr + start + d, mask=real & (d < D), other=0.0))
    store_heads(v_cache_ptr, v_scale_ptr, value, at, real, D, DP, KIND)


def tile_rows(heads: int, columns: int, interpreted: bool = False) -> int:
    """Heads of a program: those of 1,024 elements; the interpreter pays by the program."""
    limit = max(1, (1 << 15 if interpreted else 1024) // columns)
    return min(triton.next_power_of_2(heads), limit)


def launch_options(rows: int, columns: int) -> dict[str, int]:
    return dict(num_warps=max(1, rows * columns // 256))


def kv_append_(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    length: torch.Tensor,
    *,
    count: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    position: torch.Tensor | None = None,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    norm_eps: float = 1e-6,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> None:
    B, T, H, D = k.shape
    if B == 0:
        return
    (keys, kind), (values, _) = cache_view(k_cache), cache_view(v_cache)
    (k_strides, k_align), (v_strides, v_align) = token_strides(k), token_strides(v)
    columns = head_columns(D)
    rows = tile_rows(T * H, columns, not isinstance(kv_append_kernel, triton.JITFunction))
    with on_device_of(k):
        kv_append_kernel[(triton.cdiv(T * H, rows) * B,)](
            k, v, keys, values, k_scale, v_scale,
            length, count, block_table, position, k_norm, cos, sin,
            *k_strides, *v_strides, T, H, *places_of(k_cache, block_table),
            *((0, 0) if cos is None else cos.shape), norm_eps,
            KIND=kind, D=D, DP=columns, BR=rows, K_ALIGN=k_align, V_ALIGN=v_align,
            **launch_options(rows, columns),
        )  # fmt: skip


def kv_append(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    length: torch.Tensor,
    *,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    **options,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    caches = k_cache.clone(), v_cache.clone()
    scales = [None if s is None else s.clone() for s in (k_scale, v_scale)]
    kv_append_(k, v, *caches, length, k_scale=scales[0], v_scale=scales[1], **options)
    empty = [k_cache.new_empty(0, dtype=torch.float32) if s is None else s for s in scales]
    return *caches, *empty
