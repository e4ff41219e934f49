"""DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2), the ODE solver.

With h the step in log(alpha / sigma) and h' the one before,

    D   = x0 + h / (2 h') (x0 - x0'),
    x_b = sigma_b / sigma_a x_a + alpha_b (1 - e^-h) D;

the first step, and the last data prediction, take D = x0.

With cfg_pp (CFG++, Chung et al. 2024; ComfyUI's `sample_dpmpp_2m_cfg_pp` but on ``flow``, where it
works in log sigma) the noise is read off the prediction x0u without the condition, and x0' is x0u
of the step before:

    x_b = sigma_b / sigma_a x_a + alpha_b (x0 - e^-h x0u + (1 - e^-h) h / (2 h') (x0 - x0')).
"""

from __future__ import annotations

import functools

import numpy as np

from ..tables.paths import Transition
from ..tables.table import StepTable
from ._multistep import check_flag
from ._one_call import one_call_table


def step(t: Transition, previous: Transition | None, cfg_pp: bool = False) -> dict[str, float]:
    gain = -t.alpha_b * np.expm1(-t.h)
    slope = 0.0 if previous is None else gain * t.h / (2 * previous.h)
    data = {"x_0": gain + slope, "m_0": 1.0}
    if cfg_pp:
        data = {"x_0": t.alpha_b + slope, "x_u": gain - t.alpha_b, "m_u": 1.0}
    return {"x_x": t.sigma_b / t.sigma_a, "x_m": -slope, **data}


def table(path, prediction, levels, steps, *, cfg_pp=False, denoise_last=True) -> StepTable:
    """`steps` calls, one per step."""
    check_flag("dpmpp-2m", "cfg_pp", cfg_pp)
    rows = functools.partial(step, cfg_pp=bool(cfg_pp))
    return one_call_table("dpmpp-2m", path, prediction, levels, steps, denoise_last, rows)
