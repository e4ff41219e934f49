"""Argument checks of `lookahead_verify`; ``csrc/torch/lookahead.h`` repeats them."""

from __future__ import annotations

import torch
from torch import Tensor

from .._shared.arguments import check_matrix, shape_text
from ..lookahead_draft.checks import check_outs, check_window


def check_lookahead_verify(
    states: Tensor,
    drafts: Tensor,
    outs: Tensor,
    memory: Tensor,
    coef: Tensor,
    plan: Tensor,
    row: Tensor,
    count: Tensor,
    draw: Tensor,
    key: Tensor,
    stream: Tensor,
    *,
    x0_clamp: float | None = None,
    tolerance: float | None = None,
    **options: Tensor | None,
) -> None:
    name = "lookahead_verify"
    if drafts.dim() != 3 or drafts.shape[1] < 1:
        raise RuntimeError(
            f"{name}: drafts must be [B, L, d] with L >= 1, got {shape_text(drafts.shape)}"
        )
    batch, rows, d = drafts.shape
    check_matrix(name, "drafts", drafts, torch.float32, (batch, rows, d))
    check_matrix(name, "states", states, torch.float32, (batch, rows + 1, d))
    velocities = options.get("velocities")
    check_matrix(name, "velocities", velocities, torch.float32, (batch, rows + 1, d))
    check_outs(name, outs, (batch, rows, d))
    if not (tolerance is None or tolerance >= 0):
        raise RuntimeError(f"{name}: tolerance must be 0 or more, got {tolerance}")
    tensors = {"states": states, "drafts": drafts, "outs": outs}
    place = (memory, coef, plan, row, count, draw, key, stream)
    check_window(name, batch, rows, d, tensors, place, "velocities", options, x0_clamp)
