"""Restart sampling (Xu et al. 2023, Algorithm 1): Heun's method, and an interval done over.

The steps of ``heun`` go down the grid. Having come to S_min, the level of the grid whose
sigma / alpha is nearest to `restart_min`, noise takes the state back up to S_max = `restart_max`,

    x_max = alpha_max (x_min / alpha_min + sqrt(S_max^2 - S_min^2) xi),

a row without a model call, and `restart_steps` steps of Heun's method go down again over levels
that are uniform in (sigma / alpha)^(1 / 7); all this `restarts` times. The noise forgets errors of
the steps above, the steps between add few of their own. A grid so coarse that S_min is not below
S_max has no restart.

The defaults are the authors' for CIFAR-10 in units of the data's deviation, 0.5 there: S_min 0.06,
S_max 0.3, two steps. More noise needs more steps: restart_max = 2 from 0.1 some nine.
"""

from __future__ import annotations

import numpy as np

from ..tables.paths import Path, time_grid
from ..tables.table import StepTable, TableBuilder
from . import heun


def table(
    path, prediction, levels, steps, *, restart_min=0.12, restart_max=0.6, restarts=1,
    restart_steps=2, denoise_last=True,
) -> StepTable:  # fmt: skip
    """Two calls a step, the restarts' steps counted, then the data prediction."""
    low, high = _check(restart_min, restart_max)
    for name, value in (("restarts", restarts), ("restart_steps", restart_steps)):
        if isinstance(value, bool) or value != int(value) or value < 1:
            raise ValueError(f"restart: {name} must be an integer of 1 or more, got {value!r}")
    extra, last = int(restarts) * int(restart_steps), int(denoise_last)
    count = (steps - last) // 2 - extra
    if count < 1:
        raise ValueError(
            f"restart makes two model calls per step and does {extra} steps over: it needs "
            f"steps >= {2 * (extra + 1) + last}, got steps={steps}"
        )
    grid, builder = levels(count + 1), TableBuilder(path, prediction, "restart")
    at = 1 + int(np.argmin(np.abs(path.ratio(grid[1:]) - low))) if len(grid) > 1 else 0
    for i, (a, b) in enumerate(zip(grid[:-1], grid[1:], strict=True), 1):
        heun.add_step(builder, a, b)
        if i == at and path.ratio(b) < high:
            for _ in range(int(restarts)):
                add_restart(builder, path, b, high, int(restart_steps))
    return builder.finish(grid[-1] if denoise_last else None)


def add_restart(builder: TableBuilder, path: Path, b: float, high: float, steps: int) -> None:
    """Up from level `b` to the ratio `high`, and down again."""
    low = float(path.ratio(b))
    over = time_grid(path, steps + 1, "karras", ratio_max=high, ratio_min=low)
    over[-1] = b
    alpha, top = float(path.alpha(over[0])), float(path.ratio(over[0]))
    noise = alpha * np.sqrt(top**2 - low**2)
    up = {"x_x": alpha / float(path.alpha(b)), "x_n": noise}
    builder.add("diffusion", b, calls_model=False, **up)
    for a, c in zip(over[:-1], over[1:], strict=True):
        heun.add_step(builder, a, c)


def _check(low: float, high: float) -> tuple[float, float]:
    if any(isinstance(x, (str, bool)) for x in (low, high)) or not 0 < low < high < np.inf:
        raise ValueError(
            "restart needs 0 < restart_min < restart_max, values of sigma / alpha, got "
            f"restart_min={low!r} and restart_max={high!r}"
        )
    return float(low), float(high)
