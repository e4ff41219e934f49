"""Guidance: what classifier-free guidance compares with and how much that counts, checked once."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

SCHEDULES = ("constant", "linear")


class Guidance(NamedTuple):
    """u + w (c - u) with one condition beside that of c; u2 + w2 (u - u2) + w (c - u) with two.

    Attributes:
        conditions: of u, then of u2: none, one or two.
        weights: w, then w2; one for each condition.

    Example:
        >>> import torch
        >>> from ardiff.guide import Guidance
        >>> guidance = Guidance.of(torch.zeros(2, 16), 3.0, None, None)
        >>> guidance.outputs, guidance.factors()
        (2, {'guidance': 3.0})
    """

    conditions: tuple[Any, ...] = ()
    weights: tuple[Any, ...] = ()

    @staticmethod
    def of(uncond: Any, guidance: Any, uncond2: Any, guidance2: Any) -> Guidance:
        """From the four arguments that the samplers take.

        Raises:
            ValueError: a weight without its condition or the reverse, the second without the first.
        """
        if (uncond2 is None) != (guidance2 is None) or (guidance2 is not None and guidance is None):
            raise ValueError("guidance2 and uncond2 go together, and only with guidance and uncond")
        if (uncond is None) != (guidance is None):
            raise ValueError("guidance and uncond go together: pass both or neither")
        count = 2 if guidance2 is not None else 1 if guidance is not None else 0
        return Guidance((uncond, uncond2)[:count], (guidance, guidance2)[:count])

    @property
    def outputs(self) -> int:
        """Model outputs at each step: one, two or three."""
        return 1 + len(self.weights)

    def arguments(self) -> dict[str, Any]:
        """As :func:`ardiff.loop.run.run` takes it."""
        conditions = zip(("uncond", "uncond2"), self.conditions, strict=False)
        return {**dict(conditions), **self.factors()}

    def factors(self) -> dict[str, Any]:
        """The weights, by the names that the ops give them."""
        return dict(zip(("guidance", "guidance2"), self.weights, strict=False))

    def per_sample(
        self,
        batch: int,
        device: torch.device | str,
        names: tuple[str, ...] = ("guidance", "guidance2"),
    ) -> Guidance:
        """With weights as :func:`per_sample` gives them; errors call them by `names`."""
        weights = tuple(
            per_sample(name, weight, batch, device, low=-math.inf)
            for name, weight in zip(names, self.weights, strict=False)
        )
        return self._replace(weights=weights)

    def per_patch(self, schedule: str, patches: int) -> Guidance:
        """With a list of the weight at each patch in the place of each weight, a number.

        Raises:
            ValueError, TypeError: a weight that is not finite or no number, an unknown schedule.
        """
        _check_schedule(schedule)
        weights = [number(name, weight, -math.inf) for name, weight in self.factors().items()]
        return self._replace(
            weights=tuple(guidance_weights(weight, schedule, patches) for weight in weights)
        )


def guidance_weights(weight: float, schedule: str, patches: int) -> list[float]:
    """The weight at each patch.

    ``linear`` grows from no guidance to `weight` at the last patch, 1 + (weight - 1) (k + 1) / K,
    as in MAR (Li et al. 2024), where k + 1 of K tokens are known after the step.

    Raises:
        ValueError: an unknown schedule.
    """
    _check_schedule(schedule)
    if schedule == "constant":
        return [weight] * patches
    return [1 + (weight - 1) * (k + 1) / patches for k in range(patches)]


def _check_schedule(schedule: str) -> None:
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown guidance_schedule {schedule!r}; known: {', '.join(SCHEDULES)}")


def number(name: str, value: float, low: float) -> float:
    """`value` as a finite float, at least `low`; TypeError or ValueError otherwise."""
    try:
        found = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not (math.isfinite(found) and found >= low):
        raise ValueError(f"{name} must be finite{_bound(low)}, got {value}")
    return found


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
        raise ValueError(f"{name} must be finite{_bound(low)}, got {value}")
    return tensor


def _bound(low: float) -> str:
    return "" if low == -math.inf else f" and at least {low:g}"
