"""Argument checks of `diffusion_step`; ``csrc/torch/diffusion_step.h`` repeats them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._shared.steps import check_step, check_x0_clamp


def check_diffusion_step(
    op: str,
    written: Sequence[str],
    x: Tensor,
    model_out: Tensor,
    memory: Tensor,
    *place: Tensor,
    x0_clamp: float | None = None,
    **options: Tensor | None,
) -> None:
    dtypes = (torch.float32, torch.bfloat16)
    state = {"x": x, "memory": memory}
    check_step(op, state, dtypes, 4, True, written, model_out, *place, options, 3)
    check_x0_clamp(op, x0_clamp)
