"""Argument checks of the backward ops; ``csrc/torch/<op>.h`` repeats them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .checks import (
    MODEL_DTYPES,
    QUADS,
    _matrix,
    _name,
    _placement,
    _table,
    _vector,
    check_step,
    check_x0_clamp,
)


def _lead(op: str, grads: Mapping[str, Tensor | None]) -> tuple[str, Tensor]:
    for name, grad in grads.items():
        if grad is not None:
            return name, grad
    *names, last = grads
    raise RuntimeError(f"{op}: pass at least one of {', '.join(names)} and {last}")


def _wanted(op: str, wanted: int, results: int) -> None:
    if not 0 <= wanted < 2**results:
        raise RuntimeError(f"{op}: wanted must lie in [0, {2**results - 1}], got {wanted}")


def check_uld_step_backward(
    grad_z: Tensor | None,
    grad_v: Tensor | None,
    grad_anchor: Tensor | None,
    coef: Tensor,
    row: Tensor,
    *,
    guidance: Tensor | None = None,
    guidance2: Tensor | None = None,
    noise_scale: Tensor | None = None,
    dtype: torch.dtype,
    wanted: int = 255,
) -> None:
    op = "uld_step_backward"
    grads = {"grad_z": grad_z, "grad_v": grad_v, "grad_anchor": grad_anchor}
    name, lead = _lead(op, grads)
    if lead.dim() != 2:
        raise RuntimeError(f"{op}: {name} must be [B, d], got {lead.dim()} dimensions")
    rows, d = lead.shape
    if not 1 <= d <= 2 * QUADS:
        raise RuntimeError(
            f"{op}: {name} must have between 1 and {2 * QUADS} elements a row, got {d}"
        )
    for name, grad in grads.items():
        _matrix(op, name, grad, torch.float32, lead.shape)
    _table(op, coef)
    _vector(op, "row", row, torch.int32, rows, shared=True)
    options = {"guidance": guidance, "guidance2": guidance2, "noise_scale": noise_scale}
    if guidance is None and guidance2 is not None:
        raise RuntimeError(f"{op}: guidance2 goes only beside guidance")
    for name, t in options.items():
        _vector(op, name, t, torch.float32, rows, shared=True)
    if dtype not in MODEL_DTYPES:
        raise RuntimeError(f"{op}: dtype must be float32, float16 or bfloat16, got {_name(dtype)}")
    _wanted(op, wanted, 8)
    _placement(op, {**grads, "coef": coef, "row": row, **options}, ())


def check_diffusion_step_backward(
    grad_x: Tensor | None,
    grad_memory: Tensor | None,
    grad_x0: Tensor | None,
    x: Tensor,
    *tensors: Tensor,
    x0_clamp: float | None = None,
    second_memory: bool = False,
    wanted: int = 63,
    **options: Tensor | None,
) -> None:
    op = "diffusion_step_backward"
    if x.dim() != 2:
        raise RuntimeError(f"{op}: x must be [B, d], got {x.dim()} dimensions")
    dtypes = (torch.float32, torch.bfloat16)
    check_step(op, {"x": x}, dtypes, 4, True, (), *tensors, options)
    check_x0_clamp(op, x0_clamp)
    grads = {"grad_x": grad_x, "grad_memory": grad_memory, "grad_x0": grad_x0}
    _lead(op, grads)
    rows, d = x.shape
    for name, grad in grads.items():
        wide = second_memory and name == "grad_memory"
        _matrix(op, name, grad, x.dtype, (rows, 2 * d if wide else d))
    _wanted(op, wanted, 6)
    _placement(op, {"x": x, **grads}, ())
