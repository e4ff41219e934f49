"""DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2), the ODE solver.

With h the step in log(alpha / sigma) and h' the one before,

    D   = x0 + h / (2 h') (x0 - x0'),
    x_b = sigma_b / sigma_a x_a + alpha_b (1 - e^-h) D;

the first step, and the last data prediction, take D = x0.
"""

from __future__ import annotations

import numpy as np

from ..tables.paths import Transition
from ..tables.table import StepTable
from ._one_call import one_call_table


def step(t: Transition, previous: Transition | None) -> dict[str, float]:
    gain = -t.alpha_b * np.expm1(-t.h)
    slope = 0.0 if previous is None else gain * t.h / (2 * previous.h)
    return {"x_x": t.sigma_b / t.sigma_a, "x_0": gain + slope, "x_m": -slope, "m_0": 1.0}


def table(path, prediction, levels, steps, *, denoise_last=True) -> StepTable:
    """`steps` calls, one per step."""
    return one_call_table("dpmpp-2m", path, prediction, levels, steps, denoise_last, step)
