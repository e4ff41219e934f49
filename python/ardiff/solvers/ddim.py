"""DDIM (Song, Meng, Ermon 2021, eq. 12 with eta = 0): the noise that the model sees is kept,

x_b = alpha_b x0 + sigma_b eps,   eps = (x_a - alpha_a x0) / sigma_a.
"""

from __future__ import annotations

import numpy as np

from ..paths import Transition
from ..table import StepTable
from ._one_call import one_call_table


def step(t: Transition, previous: Transition | None) -> dict[str, float]:
    return {"x_x": t.sigma_b / t.sigma_a, "x_0": -t.alpha_b * np.expm1(-t.h)}


def table(path, prediction, levels, steps, *, denoise_last=True) -> StepTable:
    """`steps` calls, one a step."""
    return one_call_table("ddim", path, prediction, levels, steps, denoise_last, step)
