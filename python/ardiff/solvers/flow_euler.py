"""Euler's method on the probability flow of a rectified flow (Liu et al. 2022), on any path.

Every path is a rectified flow in the coordinates c = alpha + sigma, y = x / c, t = sigma / c, where
y = (1 - t) x0 + t eps. With the velocity u = eps - x0 = (y - x0) / t,

    y_b = y_a + (t_b - t_a) u = (t_b / t_a) y_a + (1 - t_b / t_a) x0.

One step keeps the noise that the model sees, so this is DDIM in other coordinates; the last step,
to t = 0, is the data prediction.
"""

from __future__ import annotations

from ..tables.paths import Transition
from ..tables.table import StepTable
from ._one_call import one_call_table


def coordinates(t: Transition) -> tuple[float, float, float, float]:
    """(c_a, t_a, c_b, t_b)."""
    c_a, c_b = t.alpha_a + t.sigma_a, t.alpha_b + t.sigma_b
    return c_a, t.sigma_a / c_a, c_b, t.sigma_b / c_b


def step(t: Transition, previous: Transition | None) -> dict[str, float]:
    c_a, t_a, c_b, t_b = coordinates(t)
    return {"x_x": c_b / c_a * (t_b / t_a), "x_0": c_b * (1 - t_b / t_a)}


def table(path, prediction, levels, steps, *, denoise_last=True) -> StepTable:
    """`steps` calls, one per step."""
    return one_call_table("flow-euler", path, prediction, levels, steps, denoise_last, step)
