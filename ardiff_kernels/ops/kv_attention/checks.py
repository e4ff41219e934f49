"""Argument checks of `kv_attention`; ``csrc/torch/kv_attention.h`` repeats them."""

from __future__ import annotations

from torch import Tensor

from .._shared.arguments import check_placement, shape_text
from .._shared.kv_cache import (
    check_cache,
    check_norm,
    check_rows,
    check_tokens,
    check_unit_stride,
)

MAX_TOKENS = 64


def check_attention(
    op: str,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    length: Tensor,
    *,
    count: Tensor | None = None,
    block_table: Tensor | None = None,
    position: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    q_norm: Tensor | None = None,
    norm_eps: float = 1e-6,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    scale: float | None = None,
    window: int = 0,
    causal: bool = True,
) -> None:
    check_tokens(op, "q", q)
    check_cache(op, k_cache, v_cache, k_scale, v_scale)
    rows, tokens, heads, d = q.shape
    kv_heads = k_cache.shape[1]
    if not 1 <= tokens <= MAX_TOKENS or heads < 1 or heads % kv_heads or d != k_cache.shape[3]:
        raise RuntimeError(
            f"{op}: q must be [B, T, H, {k_cache.shape[3]}] with T from 1 to {MAX_TOKENS} and H a "
            f"multiple of {kv_heads} for a cache {shape_text(k_cache.shape)}, "
            f"got {shape_text(q.shape)}"
        )
    check_unit_stride(op, "q", q)
    options = {"count": count, "block_table": block_table, "position": position}
    options |= {"cos": cos, "sin": sin}
    check_rows(op, rows, tokens, k_cache, length, options)
    check_norm(op, "q_norm", q_norm, norm_eps, d)
    if window < 0:
        raise RuntimeError(f"{op}: window must be at least 0, got {window}")
    tensors = {"q": q, "k_cache": k_cache, "v_cache": v_cache, "length": length, **options}
    tensors |= {"q_norm": q_norm, "k_scale": k_scale, "v_scale": v_scale}
    check_placement(op, tensors, ())
