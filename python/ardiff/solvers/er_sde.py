"""ER-SDE-Solver, the extended reverse-time SDE (Cui et al. 2023), of order 1 to 3, as in ComfyUI.

In y = x / alpha and s = sigma / alpha, with f(s) = s (e^(s^.3) + 10) the scale of the noise,
r = f(s_b) / f(s_a), x0 the data prediction, x0' and x0'' those before, made at s' and s'',

    y_b = r y_a + (1 - r) x0
          + (s_b - s_a + f(s_b) I_0) D                        order 2 and 3
          + ((s_b - s_a)^2 / 2 + f(s_b) I_1) B                order 3
          + sqrt(s_b^2 - r^2 s_a^2) xi,

    D = (x0 - x0') / (s_a - s'),   B = (D - D') / ((s_a - s'') / 2),   D' the D of the step before,
    I_0 = integral over [s_b, s_a] of ds / f(s),   I_1 = integral of (s - s_a) ds / f(s).

The integrals are sums over 200 points with the left ends of their intervals, as in the original (of
more points the samples are others). The first steps are of lower order; the last is the data
prediction.
"""

from __future__ import annotations

import functools

import numpy as np

from ..tables.paths import Transition
from ..tables.table import StepTable
from ._multistep import Step, check_integer, prediction_table

POINTS = 200


def growth(s: np.ndarray | float) -> np.ndarray | float:
    """f(s) / s."""
    with np.errstate(over="ignore"):
        return np.exp(np.power(s, 0.3)) + 10


def step(past: list[Transition], left: int, order: int) -> Step:
    t, order = past[0], min(order, len(past))
    ratio = [_ratio(a.sigma_a, a.alpha_a) for a in past[:3]]  # s_a, s', s''
    s_a, s_b = ratio[0], t.sigma_b / t.alpha_b
    fall = growth(s_b) / growth(s_a)  # r s_a / s_b
    weights = np.array([1 - fall * np.exp(-t.h), 0.0, 0.0])
    if order > 1:
        width = (s_a - s_b) / POINTS
        s = s_b + np.arange(POINTS) * width
        density = s_b * growth(s_b) / (s * growth(s)) * width
        rise = np.array([1, -1, 0]) / (s_a - ratio[1])
        weights += (density.sum() - (s_a - s_b)) * rise
    if order > 2:
        bend = (rise - np.array([0, 1, -1]) / (ratio[1] - ratio[2])) / ((s_a - ratio[2]) / 2)
        weights += ((s_a - s_b) ** 2 / 2 + (density * (s - s_a)).sum()) * bend
    return Step(t.sigma_b / t.sigma_a * fall, t.alpha_b * weights, t.sigma_b * np.sqrt(1 - fall**2))


def _ratio(sigma: float, alpha: float) -> float:
    return sigma / alpha if alpha > 0 else np.inf


def table(path, prediction, levels, steps, *, order=3, denoise_last=True) -> StepTable:
    """`steps` calls, one per step."""
    check_integer("er-sde", "order", order, 1, 3)
    rows = functools.partial(step, order=order)
    return prediction_table(
        "er-sde", path, prediction, levels, steps, denoise_last, rows, memories=max(order - 1, 0)
    )
