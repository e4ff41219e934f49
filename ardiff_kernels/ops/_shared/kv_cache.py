"""Checks that `kv_append` and `kv_attention` share: tokens, the cache, its rows, rotary tables."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .arguments import check_contiguous, check_vector, dtype_name, got, shape_text

TOKEN_DTYPES = (torch.float32, torch.bfloat16)
QUANTIZED = (torch.int8, torch.float8_e4m3fn)
CACHE_DTYPES = (*TOKEN_DTYPES, *QUANTIZED)


def check_tokens(op: str, name: str, t: Tensor) -> None:
    if t.dim() != 4:
        raise RuntimeError(f"{op}: {name} must be [B, T, H, D], got {t.dim()} dimensions")
    if t.dtype not in TOKEN_DTYPES:
        raise RuntimeError(f"{op}: {name} must be float32 or bfloat16, got {dtype_name(t.dtype)}")


def check_unit_stride(op: str, name: str, t: Tensor) -> None:
    if t.numel() > 0 and t.stride(3) != 1:
        raise RuntimeError(
            f"{op}: {name} must have unit stride in its last dimension, got strides "
            f"{shape_text(t.stride())}; call .contiguous() first"
        )


def check_cache(
    op: str, k_cache: Tensor, v_cache: Tensor, k_scale: Tensor | None, v_scale: Tensor | None
) -> None:
    if k_cache.dim() != 4:
        raise RuntimeError(f"{op}: k_cache must be [N, H, S, D], got {k_cache.dim()} dimensions")
    if k_cache.dtype not in CACHE_DTYPES:
        raise RuntimeError(
            f"{op}: k_cache must be float32, bfloat16, int8 or float8_e4m3fn, got "
            f"{dtype_name(k_cache.dtype)}"
        )
    blocks, heads, size, d = k_cache.shape
    if heads < 1 or size < 1 or not 32 <= d <= 256 or d % 8:
        raise RuntimeError(
            f"{op}: k_cache must be [N, H, S, D] with H and S at least 1 and D a multiple of 8 "
            f"from 32 to 256, got {shape_text(k_cache.shape)}"
        )
    check_contiguous(op, "k_cache", k_cache, k_cache.dtype, k_cache.shape)
    check_contiguous(op, "v_cache", v_cache, k_cache.dtype, k_cache.shape)
    quantized = k_cache.dtype in QUANTIZED
    if (k_scale is not None) != quantized or (v_scale is not None) != quantized:
        raise RuntimeError(
            f"{op}: k_scale and v_scale go with an int8 or float8_e4m3fn cache and with no other, "
            f"and the cache is {dtype_name(k_cache.dtype)}"
        )
    check_contiguous(op, "k_scale", k_scale, torch.float32, (blocks, heads, size))
    check_contiguous(op, "v_scale", v_scale, torch.float32, (blocks, heads, size))


def check_rows(
    op: str, rows: int, tokens: int, k_cache: Tensor, length: Tensor, options: Mapping
) -> None:
    d = k_cache.shape[3]
    check_vector(op, "length", length, torch.int32, rows)
    check_vector(op, "count", options["count"], torch.int32, rows)
    table = options["block_table"]
    if table is None:
        if k_cache.shape[0] < rows:
            raise RuntimeError(
                f"{op}: without block_table the cache needs a block for each of the {rows} rows, "
                f"got k_cache {shape_text(k_cache.shape)}"
            )
    elif not (
        table.dim() == 2
        and table.dtype == torch.int32
        and table.shape[0] == rows
        and table.shape[1] >= 1
        and table.is_contiguous()
    ):
        raise RuntimeError(
            f"{op}: block_table must be a contiguous int32 [{rows}, M] with M >= 1, {got(table)}"
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
                f"{got(cos)}"
            )
        check_contiguous(op, "sin", sin, torch.float32, cos.shape)
    check_contiguous(op, "position", position, torch.int32, (rows, tokens))


def check_norm(op: str, name: str, weight: Tensor | None, eps: float, d: int) -> None:
    check_vector(op, name, weight, torch.float32, d)
    if weight is not None and not eps >= 0:
        raise RuntimeError(f"{op}: norm_eps must be at least 0, got {eps}")


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
                "tokens per sequence; make a larger cache"
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
