"""DDIM (Song, Meng, Ermon 2021, eq. 12): part of the noise that the model sees is kept,

    x_b = alpha_b x0 + sqrt(sigma_b^2 - w^2) eps + w xi,   eps = (x_a - alpha_a x0) / sigma_a,

with w = eta times the width of the ancestral step, at most sigma_b: eta = 0 is the ODE, eta = 1
DDPM. On the path ``edm`` it is k-diffusion's ancestral Euler step.
"""

from __future__ import annotations

import functools

import numpy as np

from ..tables.paths import Transition
from ..tables.table import StepTable
from ._one_call import one_call_table


def step(t: Transition, previous: Transition | None, eta: float = 0.0) -> dict[str, float]:
    fresh = min(eta * eta * -np.expm1(-2 * t.h), 1.0)  # w^2 / sigma_b^2
    kept, fall = np.sqrt(1 - fresh), np.exp(-t.h)
    return {
        "x_x": t.sigma_b / t.sigma_a * kept,
        "x_0": t.alpha_b * (fall * fresh / (1 + kept) - np.expm1(-t.h)),
        "x_n": t.sigma_b * np.sqrt(fresh),
    }


def table(path, prediction, levels, steps, *, eta=0.0, denoise_last=True) -> StepTable:
    """`steps` calls, one per step."""
    if isinstance(eta, (str, bool)) or not 0 <= eta < np.inf:
        raise ValueError(f"ddim: eta must be finite and not negative, got {eta!r}")
    rows = functools.partial(step, eta=float(eta))
    return one_call_table("ddim", path, prediction, levels, steps, denoise_last, rows)
