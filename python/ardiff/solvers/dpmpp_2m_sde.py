"""SDE-DPM-Solver++(2M) (Lu et al. 2022), the stochastic solver, as in diffusers and k-diffusion.

With h the step in log(alpha / sigma), h' the one before and H = (1 + eta) h,

    x_b = sigma_b / sigma_a e^(-eta h) x_a + alpha_b (1 - e^-H) x0 + alpha_b c h / h' (x0 - x0')
          + sigma_b sqrt(1 - e^(-2 eta h)) xi,

c = (1 - e^-H) / 2 (``midpoint``) or 1 - (1 - e^-H) / H (``heun``). The first step, and the last
data prediction, take x0' = x0. eta = 1 is the SDE of the diffusion, eta = 0 its ODE.
"""

from __future__ import annotations

import functools

import numpy as np

from ..tables.paths import Transition
from ..tables.table import StepTable
from ._one_call import one_call_table

SOLVER_TYPES = ("midpoint", "heun")


def step(
    t: Transition, previous: Transition | None, eta: float = 1.0, solver_type: str = "midpoint"
) -> dict[str, float]:
    churn, whole = eta * t.h if eta else 0.0, (1 + eta) * t.h
    gain, slope = -t.alpha_b * np.expm1(-whole), 0.0
    if previous is not None and solver_type == "midpoint":
        slope = gain * t.h / (2 * previous.h)
    elif previous is not None:
        slope = (t.alpha_b - gain / whole) * t.h / previous.h
    return {
        "x_x": t.sigma_b / t.sigma_a * np.exp(-churn),
        "x_0": gain + slope,
        "x_m": -slope,
        "x_n": t.sigma_b * np.sqrt(-np.expm1(-2 * churn)),
        "m_0": 1.0,
    }


def table(
    path, prediction, levels, steps, *, eta=1.0, solver_type="midpoint", denoise_last=True
) -> StepTable:
    """`steps` calls, one per step."""
    if isinstance(eta, (str, bool)) or not 0 <= eta < np.inf:
        raise ValueError(f"dpmpp-2m-sde: eta must be finite and not negative, got {eta!r}")
    if solver_type not in SOLVER_TYPES:
        known = ", ".join(SOLVER_TYPES)
        raise ValueError(f"unknown solver_type {solver_type!r}; known: {known}")
    rows = functools.partial(step, eta=float(eta), solver_type=solver_type)
    return one_call_table("dpmpp-2m-sde", path, prediction, levels, steps, denoise_last, rows)
