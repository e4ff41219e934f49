"""Argument checks of `kv_append`; ``csrc/torch/kv_append.h`` repeats them."""

from __future__ import annotations

from torch import Tensor

from .._shared.arguments import check_placement, dtype_name, got, shape_text
from .._shared.kv_cache import (
    check_cache,
    check_norm,
    check_rows,
    check_tokens,
    check_unit_stride,
)


def check_append(
    op: str,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    length: Tensor,
    *,
    count: Tensor | None = None,
    block_table: Tensor | None = None,
    position: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    k_norm: Tensor | None = None,
    norm_eps: float = 1e-6,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    check_tokens(op, "k", k)
    check_cache(op, k_cache, v_cache, k_scale, v_scale)
    rows, tokens, heads, d = k.shape
    if tokens < 1 or (heads, d) != (k_cache.shape[1], k_cache.shape[3]):
        raise RuntimeError(
            f"{op}: k must be [B, T, {k_cache.shape[1]}, {k_cache.shape[3]}] with T >= 1 for a "
            f"cache {shape_text(k_cache.shape)}, got {shape_text(k.shape)}"
        )
    if v.dtype != k.dtype or v.shape != k.shape:
        raise RuntimeError(
            f"{op}: v must be {dtype_name(k.dtype)} {shape_text(k.shape)} as k, {got(v)}"
        )
    check_unit_stride(op, "k", k)
    check_unit_stride(op, "v", v)
    options = {"count": count, "block_table": block_table, "position": position}
    options |= {"cos": cos, "sin": sin}
    check_rows(op, rows, tokens, k_cache, length, options)
    check_norm(op, "k_norm", k_norm, norm_eps, d)
    tensors = {"k": k, "v": v, "k_cache": k_cache, "v_cache": v_cache, "length": length, **options}
    tensors |= {"k_norm": k_norm, "k_scale": k_scale, "v_scale": v_scale}
    written = ("k_cache", "v_cache", "k_scale", "v_scale")
    check_placement(op, tensors, written if op.endswith("_") else ())
