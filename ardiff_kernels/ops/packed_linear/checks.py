"""Argument checks of `packed_linear`; ``csrc/torch/packed_linear.h`` repeats them."""

from __future__ import annotations

import torch
from torch import Tensor

from .._shared.arguments import (
    check_placement,
    check_vector,
    dtype_name,
    got,
    shape_text,
)
from .packing import WORD, packed_shape

INPUT_DTYPES = (torch.float32, torch.bfloat16)
ACTIVATIONS = ("none", "silu", "swiglu")
MOST_ROWS = 2**31 - 16  # of a matrix: numbers of panels and rows then do not overflow


def outputs(rows: int, activation: str) -> int:
    """Columns of the result."""
    return rows // 2 if activation == "swiglu" else rows


def _check_result_shaped(
    op: str, name: str, t: Tensor | None, dtype: torch.dtype, n: int, columns: int, shared: bool
) -> None:
    """A matrix `[n, columns]`, or `[1, columns]` where it may be shared, with unit stride."""
    if t is None:
        return
    lengths = [n, 1] if shared and n != 1 else [n]
    ok = t.dim() == 2 and t.dtype == dtype and t.shape[1] == columns and t.shape[0] in lengths
    if not ok:
        shapes = " or ".join(f"[{rows}, {columns}]" for rows in lengths)
        raise RuntimeError(f"{op}: {name} must be {dtype_name(dtype)} {shapes}, {got(t)}")


def check_packed_linear(
    op: str,
    x: Tensor,
    weight: Tensor,
    rows: int,
    *,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    norm: Tensor | None = None,
    eps: float = 1e-6,
    activation: str = "none",
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> None:
    if x.dim() != 2:
        raise RuntimeError(f"{op}: x must be [N, K], got {x.dim()} dimensions")
    if x.dtype not in INPUT_DTYPES:
        raise RuntimeError(f"{op}: x must be float32 or bfloat16, got {dtype_name(x.dtype)}")
    n, columns = x.shape
    if columns < 1:
        raise RuntimeError(
            f"{op}: x must have at least 1 element per row, got {shape_text(x.shape)}"
        )
    if activation not in ACTIVATIONS:
        raise RuntimeError(f"{op}: activation must be none, silu or swiglu, got {activation}")
    if not 1 <= rows <= MOST_ROWS:
        raise RuntimeError(f"{op}: rows must lie in [1, {MOST_ROWS}], got {rows}")
    if activation == "swiglu" and rows % 2:
        raise RuntimeError(
            f"{op}: rows must be even with swiglu, whose matrix holds gate above up, got {rows}"
        )
    if not eps >= 0:
        raise RuntimeError(f"{op}: eps must be at least 0, got {eps}")
    if weight.dtype not in WORD:
        raise RuntimeError(
            f"{op}: weight must be float32, bfloat16 or int8, got {dtype_name(weight.dtype)}"
        )
    shape = packed_shape(rows, columns, weight.dtype)
    if tuple(weight.shape) != shape or not weight.is_contiguous():
        raise RuntimeError(
            f"{op}: weight must be a contiguous {dtype_name(weight.dtype)} {shape_text(shape)}, as "
            f"ardiff_kernels.pack_linear makes of a matrix [{rows}, {columns}], {got(weight)}"
        )
    if weight.dtype == torch.int8 and scale is None:
        raise RuntimeError(f"{op}: int8 weights need scale, a factor per row")
    if weight.dtype != torch.int8 and scale is not None:
        raise RuntimeError(
            f"{op}: scale goes with int8 weights only, got {dtype_name(weight.dtype)} weights"
        )
    check_vector(op, "scale", scale, torch.float32, rows)
    check_vector(op, "bias", bias, torch.float32, rows)
    check_vector(op, "norm", norm, torch.float32, columns)
    out = outputs(rows, activation)
    _check_result_shaped(op, "gate", gate, torch.float32, n, out, shared=True)
    _check_result_shaped(op, "residual", residual, x.dtype, n, out, shared=False)
    check_placement(
        op,
        {
            "x": x, "weight": weight, "scale": scale, "bias": bias, "norm": norm, "gate": gate,
            "residual": residual,
        },
        (),
    )  # fmt: skip
