"""Pieces of the step ops' reference: row look-up, dropped terms, guidance, step noise."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor


def lookup(
    coef: Tensor, columns: Sequence[str], row: Tensor, rows: int, dtype: torch.dtype
) -> tuple[SimpleNamespace, Tensor]:
    """The coefficients of each sample's row by their names, each `[B, 1]`, and live `[B, 1]`
    (False: finished). `columns` are the `COLUMNS` of the op."""
    row = row.expand(rows)
    live = (row >= 0) & (row < coef.shape[0])
    values = coef.to(dtype)[torch.where(live, row, 0).long()].unsqueeze(-1).unbind(1)
    return SimpleNamespace(**dict(zip(columns, values, strict=False))), live.unsqueeze(-1)


def term(c: Tensor, t: Tensor) -> Tensor:
    """c * t, dropped where c is zero whatever t holds."""
    return c * torch.where(c != 0, t, torch.zeros((), dtype=t.dtype, device=t.device))


def column(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A per-sample option as a column that broadcasts over elements."""
    return None if t is None else t.to(dtype).unsqueeze(-1)


def guided(model_out: Tensor, given: SimpleNamespace, d: int, dtype: torch.dtype) -> Tensor:
    """Classifier-free guidance u + w (c - u), or u2 + w2 (u1 - u2) + w (c - u1), with the options
    `given` to the step."""
    c = model_out[:, :d].to(dtype)
    if given.uncond_out is None:
        return c
    u1, w = given.uncond_out[:, :d].to(dtype), column(given.guidance, dtype)
    if given.uncond_out2 is None:
        return u1 + w * (c - u1)
    u2, w2 = given.uncond_out2[:, :d].to(dtype), column(given.guidance2, dtype)
    return u2 + w2 * (u1 - u2) + w * (c - u1)


def guidance_weights(given: SimpleNamespace, dtype: torch.dtype) -> tuple[Tensor | float, ...]:
    """Weights of model_out, uncond_out and uncond_out2 in the guided output."""
    if given.guidance is None:
        return 1.0, 0.0, 0.0
    w = column(given.guidance, dtype)
    if given.guidance2 is None:
        return w, 1 - w, 0.0
    w2 = column(given.guidance2, dtype)
    return w, w2 - w, 1 - w2


def compute_dtype(state: Tensor) -> torch.dtype:
    return torch.float64 if state.dtype == torch.float64 else torch.float32
