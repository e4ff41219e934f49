"""Argument checks of `head_lookahead`; ``csrc/torch/head_lookahead.h`` repeats them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._shared.arguments import check_contiguous, check_placement, got, shape_text
from ..head_loop.checks import check_head_loop


def check_head_lookahead(
    x: Tensor,
    memory: Tensor,
    modulation: Tensor,
    set: Tensor,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor],
    coef: Tensor,
    plan: Tensor,
    draw: Tensor,
    key: Tensor,
    stream: Tensor,
    rows: int,
    *,
    tolerance: float | None = None,
    **options,
) -> None:
    name = "head_lookahead"
    if rows < 1:
        raise RuntimeError(f"{name}: rows must be 1 or more, got {rows}")
    if not (tolerance is None or tolerance >= 0):
        raise RuntimeError(f"{name}: tolerance must be 0 or more, got {tolerance}")
    first = memory
    if x.dim() == 2:
        batch, d = x.shape
        if memory.dtype != torch.float32 or tuple(memory.shape) not in ((batch, d), (batch, 2 * d)):
            raise RuntimeError(
                f"{name}: memory must be float32 {shape_text((batch, d))} or "
                f"{shape_text((batch, 2 * d))}, {got(memory)}"
            )
        first = memory[:, :d]
    place = (coef, draw, key, stream)
    check_head_loop(name, (), x, first, modulation, set, weights, scales, *place, **options)
    check_contiguous(name, "plan", plan, torch.float32, tuple(coef.shape))
    check_placement(name, {"x": x, "plan": plan}, ())
