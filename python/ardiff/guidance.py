"""Guidance weights over the patches of an autoregressive sample."""

from __future__ import annotations

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
