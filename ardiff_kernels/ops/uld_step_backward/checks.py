"""Argument checks of `uld_step_backward`; ``csrc/torch/uld_step_backward.h`` repeats them."""

from __future__ import annotations

import torch
from torch import Tensor

from .._shared.arguments import (
    MODEL_DTYPES,
    QUADS,
    check_matrix,
    check_placement,
    check_table,
    check_vector,
    dtype_name,
)
from .._shared.gradients import check_wanted, leading_gradient
from .._shared.steps import VALUES


def check_uld_step_backward(
    grad_z: Tensor | None,
    grad_v: Tensor | None,
    grad_anchor: Tensor | None,
    coef: Tensor,
    row: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    wanted: int = 255,
    **options: Tensor | None,
) -> None:
    op = "uld_step_backward"
    grads = {"grad_z": grad_z, "grad_v": grad_v, "grad_anchor": grad_anchor}
    name, lead = leading_gradient(op, grads)
    if lead.dim() != 2:
        raise RuntimeError(f"{op}: {name} must be [B, d], got {lead.dim()} dimensions")
    rows, d = lead.shape
    if not 1 <= d <= 2 * QUADS:
        raise RuntimeError(
            f"{op}: {name} must have between 1 and {2 * QUADS} elements per row, got {d}"
        )
    for name, grad in grads.items():
        check_matrix(op, name, grad, torch.float32, lead.shape)
    check_table(op, coef)
    check_vector(op, "row", row, torch.int32, rows, shared=True)
    if options.get("guidance") is None and options.get("guidance2") is not None:
        raise RuntimeError(f"{op}: guidance2 goes only beside guidance")
    for name in VALUES:
        check_vector(op, name, options.get(name), torch.float32, rows, shared=True)
    if dtype not in MODEL_DTYPES:
        raise RuntimeError(
            f"{op}: dtype must be float32, float16 or bfloat16, got {dtype_name(dtype)}"
        )
    check_wanted(op, wanted, 8)
    check_placement(op, {**grads, "coef": coef, "row": row, **options}, ())
