"""EDM's preconditioning around the calls of a fused head."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .batch_invariant import batch_invariant as batch_invariant_mode


def preconditioned(
    call: Callable[[int, Tensor], Tensor],
    levels: Tensor,
    conditions: Sequence[Tensor],
    invariant: bool,
) -> Callable[[int, Tensor], Sequence[Tensor]]:
    """EDM's preconditioning around the outputs of all conditions."""
    sigma = levels.double().reshape(len(levels), -1, 1)
    norm = 1 + sigma**2
    inside = torch.stack([norm**-0.5, 1 / norm], 1).float().unbind(0)
    outside = (sigma * norm**-0.5).float().unbind(0)
    scaled = outs = None

    def step(row: int, x: Tensor) -> Sequence[Tensor]:
        nonlocal scaled, outs
        if scaled is None:
            scaled = x.new_empty(2, *x.shape, dtype=torch.float32)
            outs = x.new_empty(len(conditions), *x.shape, dtype=torch.float32)
            scaled, outs = (scaled, *scaled.unbind(0)), (outs, outs.unbind(0))
        both, entering, skipped = scaled
        torch.mul(x, inside[row], out=both)
        inner = call(row, entering)
        if invariant:
            with batch_invariant_mode():
                return torch.addcmul(skipped, inner, outside[row]).unbind(0)
        torch.addcmul(skipped, inner, outside[row], out=outs[0])
        return outs[1]

    return step
