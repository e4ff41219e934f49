"""Argument checks of `diffusion_step_backward`; its header in ``csrc/torch`` repeats them."""

from __future__ import annotations

import torch
from torch import Tensor

from .._shared.arguments import check_matrix, check_placement
from .._shared.gradients import check_wanted, leading_gradient
from .._shared.steps import check_step, check_x0_clamp


def check_diffusion_step_backward(
    grad_x: Tensor | None,
    grad_memory: Tensor | None,
    grad_x0: Tensor | None,
    x: Tensor,
    *tensors: Tensor,
    x0_clamp: float | None = None,
    memories: int = 1,
    wanted: int = 63,
    **options: Tensor | None,
) -> None:
    op = "diffusion_step_backward"
    if x.dim() != 2:
        raise RuntimeError(f"{op}: x must be [B, d], got {x.dim()} dimensions")
    dtypes = (torch.float32, torch.bfloat16)
    check_step(op, {"x": x}, dtypes, 4, True, (), *tensors, options)
    check_x0_clamp(op, x0_clamp)
    if memories not in (1, 2, 3):
        raise RuntimeError(f"{op}: memories must be 1, 2 or 3, got {memories}")
    grads = {"grad_x": grad_x, "grad_memory": grad_memory, "grad_x0": grad_x0}
    leading_gradient(op, grads)
    rows, d = x.shape
    for name, grad in grads.items():
        times = memories if name == "grad_memory" else 1
        check_matrix(op, name, grad, x.dtype, (rows, times * d))
    check_wanted(op, wanted, 6)
    check_placement(op, {"x": x, **grads}, ())
