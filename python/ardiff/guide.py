"""Guidance: the weights of classifier-free guidance, per sample and per patch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SCHEDULES = ("constant", "linear")


def guidance_weights(weight: float, schedule: str, patches: int) -> list[float]:
    """The weight at each patch.

    ``linear`` grows from no guidance to `weight` at the last patch, 1 + (weight - 1) (k + 1) / K,
    as in MAR (Li et al. 2024), where k + 1 of K tokens are known after the step.

    Raises:
        ValueError: an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown guidance_schedule {schedule!r}; known: {', '.join(SCHEDULES)}")
    if schedule == "constant":
        return [weight] * patches
    return [1 + (weight - 1) * (k + 1) / patches for k in range(patches)]


def per_sample(
    name: str, value: float | Tensor, batch: int, device: torch.device | str, *, low: float
) -> Tensor:
    """A number or a tensor `[B]` as float32 `[1]` or `[B]`; ValueError unless finite and >= low."""
    try:
        tensor = torch.as_tensor(value, dtype=torch.float32, device=device).reshape(-1).contiguous()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a number or have shape [{batch}], got {value!r}") from None
    if isinstance(value, Tensor) and value.dim() > 1 or len(tensor) not in (1, batch):
        shape = list(torch.as_tensor(value).shape)
        raise ValueError(f"{name} must be a number or have shape [{batch}], got {shape}")
    if not bool(((tensor >= low) & tensor.isfinite()).all()):
        bound = "" if low == -math.inf else f" and at least {low:g}"
        raise ValueError(f"{name} must be finite{bound}, got {value}")
    return tensor
