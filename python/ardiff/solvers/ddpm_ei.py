"""DDPM as the papers on reverse transition kernels analyse it: an exponential integrator.

On the Ornstein-Uhlenbeck path, with the score frozen over a step of length h,

    y_b = e^h y_a + 2 (e^h - 1) score(y_a) + sqrt(e^2h - 1) xi.

Any other path is the OU path in disguise: with c = sqrt(alpha^2 + sigma^2), y = x / c is the OU
process at the time t with e^-t = alpha / c, so the step is taken on y and carried back by x = c y.
The score of y is (e^-t x0 - y) / (1 - e^-2t), x0 the data prediction.
"""

from __future__ import annotations

import numpy as np

from ..tables.paths import Transition
from ..tables.table import StepTable
from ._one_call import one_call_table


def step(t: Transition, previous: Transition | None) -> dict[str, float]:
    h, scale_a, scale_b = ou_coordinates("ddpm-ei", t)
    variance = (t.sigma_a / scale_a) ** 2  # 1 - e^-2t
    drift = 2 * np.expm1(h) / variance
    return {
        "x_x": scale_b / scale_a * (np.exp(h) - drift),
        "x_0": scale_b * drift * t.alpha_a / scale_a,
        "x_n": scale_b * np.sqrt(np.expm1(2 * h)),
    }


def ou_coordinates(name: str, t: Transition) -> tuple[float, float, float]:
    """The step's length h in the time of the OU process, and c at both of its levels.

    Raises:
        ValueError: alpha_a = 0; `name` is the solver's.
    """
    if t.alpha_a == 0:
        raise ValueError(f"{name} cannot start at alpha = 0, an infinite OU time; start below it")
    scale_a, scale_b = np.hypot(t.alpha_a, t.sigma_a), np.hypot(t.alpha_b, t.sigma_b)
    h = 0.5 * (np.log1p((t.sigma_a / t.alpha_a) ** 2) - np.log1p((t.sigma_b / t.alpha_b) ** 2))
    return h, scale_a, scale_b


def table(path, prediction, levels, steps, *, denoise_last=True) -> StepTable:
    """`steps` calls, one per step."""
    return one_call_table("ddpm-ei", path, prediction, levels, steps, denoise_last, step)
