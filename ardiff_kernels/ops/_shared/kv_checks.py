"""Argument checks of `kv_append` and `kv_attention`; ``csrc/torch/kv*.h`` repeat them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .checks import _got, _name, _placement, _shape, _vector

TOKEN_DTYPES = (torch.float32, torch.bfloat16)
QUANTIZED = (torch.int8, torch.float8_e4m3fn)
CACHE_DTYPES = (*TOKEN_DTYPES, *QUANTIZED)
MAX_TOKENS = 64


def _exact(op: str, name: str, t: Tensor | None, dtype: torch.dtype, shape: tuple) -> None:
    """A contiguous tensor of this dtype and shape, where it is given."""
    if t is None:
        return
    if not (t.dtype == dtype and tuple(t.shape) == tuple(shape) and t.is_contiguous()):
        raise RuntimeError(
            f"{op}: {name} must be a contiguous {_name(dtype)} {_shape(shape)}, {_got(t)}"
        )


def _tokens(op: str, name: str, t: Tensor) -> None:
    if t.dim() != 4:
        raise RuntimeError(f"{op}: {name} must be [B, T, H, D], got {t.dim()} dimensions")
    if t.dtype not in TOKEN_DTYPES:
        raise RuntimeError(f"{op}: {name} must be float32 or bfloat16, got {_name(t.dtype)}")


def _unit_stride(op: str, name: str, t: Tensor) -> None:
    if t.numel() > 0 and t.stride(3) != 1:
        raise RuntimeError(
            f"{op}: {name} must have unit stride in its last dimension, got strides "
            f"{_shape(t.stride())}; call .contiguous() first"
        )


def _cache(
    op: str, k_cache: Tensor, v_cache: Tensor, k_scale: Tensor | None, v_scale: Tensor | None
) -> None:
    if k_cache.dim() != 4:
        raise RuntimeError(f"{op}: k_cache must be [N, H, S, D], got {k_cache.dim()} dimensions")
    if k_cache.dtype not in CACHE_DTYPES:
        raise RuntimeError(
            f"{op}: k_cache must be float32, bfloat16, int8 or float8_e4m3fn, got "
            f"{_name(k_cache.dtype)}"
        )
    blocks, heads, size, d = k_cache.shape
    if heads < 1 or size < 1 or not 32 <= d <= 256 or d % 8:
        raise RuntimeError(
            f"{op}: k_cache must be [N, H, S, D] with H and S at least 1 and D a multiple of 8 "
            f"from 32 to 256, got {_shape(k_cache.shape)}"
        )
    _exact(op, "k_cache", k_cache, k_cache.dtype, k_cache.shape)
    _exact(op, "v_cache", v_cache, k_cache.dtype, k_cache.shape)
    quantized = k_cache.dtype in QUANTIZED
    if (k_scale is not None) != quantized or (v_scale is not None) != quantized:
        raise RuntimeError(
            f"{op}: k_scale and v_scale go with an int8 or float8_e4m3fn cache and with no other, "
            f"and the cache is {_name(k_cache.dtype)}"
        )
    _exact(op, "k_scale", k_scale, torch.float32, (blocks, heads, size))
    _exact(op, "v_scale", v_scale, torch.float32, (blocks, heads, size))


def _rows(
    op: str, rows: int, tokens: int, k_cache: Tensor, length: Tensor, options: Mapping
) -> None:
    d = k_cache.shape[3]
    _vector(op, "length", length, torch.int32, rows)
    _vector(op, "count", options["count"], torch.int32, rows)
    table = options["block_table"]
    if table is None:
        if k_cache.shape[0] < rows:
            raise RuntimeError(
                f"{op}: without block_table the cache needs a block for each of the {rows} rows, "
                f"got k_cache {_shape(k_cache.shape)}"
            )
    elif not (
        table.dim() == 2
        and table.dtype == torch.int32
        and table.shape[0] == rows
        and table.shape[1] >= 1
        and table.is_contiguous()
    ):
        raise RuntimeError(
            f"{op}: block_table must be a contiguous int32 [{rows}, M] with M >= 1, {_got(table)}"
        )
    cos, sin, position = options["cos"], options["sin"], options["position"]
    if (cos is None) != (sin is None):
        raise RuntimeError(f"{op}: cos and sin go together: pass both or neither")
    if position is not None and cos is None:
        raise RuntimeError(f"{op}: position selects rows of cos and sin: pass them too")
    if cos is not None:
        if not (
            cos.dim() == 2
            and cos.dtype == torch.float32
            and cos.shape[0] >= 1
            and 1 <= cos.shape[1]
            and 2 * cos.shape[1] <= d
            and cos.is_contiguous()
        ):
            raise RuntimeError(
                f"{op}: cos must be a contiguous float32 [P, R / 2] with P >= 1 and 2 <= R <= {d}, "
                f"{_got(cos)}"
            )
        _exact(op, "sin", sin, torch.float32, cos.shape)
    _exact(op, "position", position, torch.int32, (rows, tokens))


def _norm(op: str, name: str, weight: Tensor | None, eps: float, d: int) -> None:
    _vector(op, name, weight, torch.float32, d)
    if weight is not None and not eps >= 0:
        raise RuntimeError(f"{op}: norm_eps must be at least 0, got {eps}")


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
    _tokens(op, "k", k)
    _cache(op, k_cache, v_cache, k_scale, v_scale)
    rows, tokens, heads, d = k.shape
    if tokens < 1 or (heads, d) != (k_cache.shape[1], k_cache.shape[3]):
        raise RuntimeError(
            f"{op}: k must be [B, T, {k_cache.shape[1]}, {k_cache.shape[3]}] with T >= 1 for a "
            f"cache {_shape(k_cache.shape)}, got {_shape(k.shape)}"
        )
    if v.dtype != k.dtype or v.shape != k.shape:
        raise RuntimeError(f"{op}: v must be {_name(k.dtype)} {_shape(k.shape)} as k, {_got(v)}")
    _unit_stride(op, "k", k)
    _unit_stride(op, "v", v)
    options = {"count": count, "block_table": block_table, "position": position}
    options |= {"cos": cos, "sin": sin}
    _rows(op, rows, tokens, k_cache, length, options)
    _norm(op, "k_norm", k_norm, norm_eps, d)
    tensors = {"k": k, "v": v, "k_cache": k_cache, "v_cache": v_cache, "length": length, **options}
    tensors |= {"k_norm": k_norm, "k_scale": k_scale, "v_scale": v_scale}
    written = ("k_cache", "v_cache", "k_scale", "v_scale")
    _placement(op, tensors, written if op.endswith("_") else ())


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
    _tokens(op, "q", q)
    _cache(op, k_cache, v_cache, k_scale, v_scale)
    rows, tokens, heads, d = q.shape
    kv_heads = k_cache.shape[1]
    if not 1 <= tokens <= MAX_TOKENS or heads < 1 or heads % kv_heads or d != k_cache.shape[3]:
        raise RuntimeError(
            f"{op}: q must be [B, T, H, {k_cache.shape[3]}] with T from 1 to {MAX_TOKENS} and H a "
            f"multiple of {kv_heads} for a cache {_shape(k_cache.shape)}, got {_shape(q.shape)}"
        )
    _unit_stride(op, "q", q)
    options = {"count": count, "block_table": block_table, "position": position}
    options |= {"cos": cos, "sin": sin}
    _rows(op, rows, tokens, k_cache, length, options)
    _norm(op, "q_norm", q_norm, norm_eps, d)
    if window < 0:
        raise RuntimeError(f"{op}: window must be at least 0, got {window}")
    tensors = {"q": q, "k_cache": k_cache, "v_cache": v_cache, "length": length, **options}
    tensors |= {"q_norm": q_norm, "k_scale": k_scale, "v_scale": v_scale}
    _placement(op, tensors, ())


def check_data(
    op: str,
    tokens: int,
    k_cache: Tensor,
    length: Tensor,
    count: Tensor | None = None,
    block_table: Tensor | None = None,
    position: Tensor | None = None,
    cos: Tensor | None = None,
) -> None:
    """Check what the tensors say: counts, room in the cache, block numbers, rotary positions.

    It reads the tensors, so on a GPU it waits for them.

    Raises:
        RuntimeError: the first row that is wrong.
    """
    blocks, _, size, _ = k_cache.shape
    capacity = size if block_table is None else size * block_table.shape[1]
    lengths = length.tolist()
    counts = [tokens] * len(lengths) if count is None else count.tolist()
    tables = None if block_table is None else block_table.tolist()
    positions = None if position is None else position.tolist()
    for b, (before, new) in enumerate(zip(lengths, counts, strict=True)):
        if before < 0:
            raise RuntimeError(f"{op}: length must be at least 0, got {before} in row {b}")
        if not 0 <= new <= tokens:
            raise RuntimeError(f"{op}: count must lie in [0, {tokens}], got {new} in row {b}")
        if before + new > capacity:
            raise RuntimeError(
                f"{op}: row {b} needs position {before + new - 1}, but the cache holds {capacity} "
                "tokens a sequence; make a larger cache"
            )
        for i in range(-(-(before + new) // size) if tables is not None else 0):
            if not 0 <= tables[b][i] < blocks:
                raise RuntimeError(
                    f"{op}: block_table must name blocks in [0, {blocks}), got {tables[b][i]} at "
                    f"[{b}, {i}]"
                )
        for t in range(new if cos is not None else 0):
            at = before + t if positions is None else positions[b][t]
            if not 0 <= at < cos.shape[0]:
                raise RuntimeError(
                    f"{op}: row {b} has position {at}, but cos and sin hold {cos.shape[0]} "
                    "positions; make longer tables"
                )
