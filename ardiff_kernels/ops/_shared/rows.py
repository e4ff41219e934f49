"""Pieces of the step ops' reference: row look-up, dropped terms, guidance, step noise."""

from __future__ import annotations

import torch
from torch import Tensor


def lookup(coef: Tensor, row: Tensor, rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Coefficients `[B, 16, 1]` of each sample's row, and live `[B, 1]` (False: finished)."""
    row = row.expand(rows)
    live = (row >= 0) & (row < coef.shape[0])
    return coef.to(dtype)[torch.where(live, row, 0).long()].unsqueeze(-1), live.unsqueeze(-1)


def term(c: Tensor, t: Tensor) -> Tensor:
    """c * t, dropped where c is zero whatever t holds."""
    return c * torch.where(c != 0, t, torch.zeros((), dtype=t.dtype, device=t.device))


def column(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A per-sample option as a column that broadcasts over elements."""
    return None if t is None else t.to(dtype).unsqueeze(-1)


def guided(
    model_out: Tensor,
    uncond_out: Tensor | None,
    uncond_out2: Tensor | None,
    guidance: Tensor | None,
    guidance2: Tensor | None,
    d: int,
    dtype: torch.dtype,
) -> Tensor:
    """Classifier-free guidance u + w (c - u), or u2 + w2 (u1 - u2) + w (c - u1)."""
    c = model_out[:, :d].to(dtype)
    if uncond_out is None:
        return c
    u1, w = uncond_out[:, :d].to(dtype), column(guidance, dtype)
    if uncond_out2 is None:
        return u1 + w * (c - u1)
    u2, w2 = uncond_out2[:, :d].to(dtype), column(guidance2, dtype)
    return u2 + w2 * (u1 - u2) + w * (c - u1)


def guidance_weights(
    guidance: Tensor | None, guidance2: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor | float, ...]:
    """Weights of model_out, uncond_out and uncond_out2 in the guided output."""
    if guidance is None:
        return 1.0, 0.0, 0.0
    w = column(guidance, dtype)
    if guidance2 is None:
        return w, 1 - w, 0.0
    w2 = column(guidance2, dtype)
    return w, w2 - w, 1 - w2


def compute_dtype(state: Tensor) -> torch.dtype:
    return torch.float64 if state.dtype == torch.float64 else torch.float32
