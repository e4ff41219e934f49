"""SDE-DPM-Solver++(3M) (Lu et al. 2022), as k-diffusion has it.

With h the step in log(alpha / sigma), H = (1 + eta) h, r_0 and r_1 the two steps before over h, x0
the data prediction and x0', x0'' those before,

    D_0 = (x0 - x0') / r_0,   D_1 = (x0' - x0'') / r_1,
    d_1 = D_0 + (D_0 - D_1) r_0 / (r_0 + r_1),   d_2 = (D_0 - D_1) / (r_0 + r_1),
    x_b = sigma_b / sigma_a e^(-eta h) x_a
          + alpha_b ((1 - e^-H) x0 + phi_2 d_1 - phi_3 d_2) + sigma_b sqrt(1 - e^(-2 eta h)) xi,

phi_2 = 1 - (1 - e^-H) / H and phi_3 = phi_2 / H - 1/2. The second step is of second order, with
d_1 = D_0 and d_2 = 0, the first and the last data prediction of first. eta = 1 is the SDE of the
diffusion, eta = 0 its ODE.
"""

from __future__ import annotations

import functools

import numpy as np

from ..tables.paths import Transition
from ..tables.table import StepTable
from ._multistep import Step, prediction_table


def step(past: list[Transition], left: int, eta: float = 1.0) -> Step:
    t = past[0]
    churn, whole = eta * t.h if eta else 0.0, (1 + eta) * t.h
    weights = np.array([-np.expm1(-whole), 0.0, 0.0])
    if len(past) > 1:
        r_0 = past[1].h / t.h
        phi_2 = 1 + np.expm1(-whole) / whole
        d_0 = np.array([1, -1, 0]) / r_0
        d_1, d_2 = d_0, np.zeros(3)
        if len(past) > 2:
            r_1 = past[2].h / t.h
            bend = d_0 - np.array([0, 1, -1]) / r_1
            # r_0 / (r_0 + r_1), which r_1 may leave no digit of
            d_1, d_2 = d_0 + bend / (1 + r_1 / r_0), bend / (r_0 + r_1)
        weights += phi_2 * d_1 - (phi_2 / whole - 0.5) * d_2
    return Step(
        t.sigma_b / t.sigma_a * np.exp(-churn),
        t.alpha_b * weights,
        t.sigma_b * np.sqrt(-np.expm1(-2 * churn)),
    )


def table(path, prediction, levels, steps, *, eta=1.0, denoise_last=True) -> StepTable:
    """`steps` calls, one per step."""
    if isinstance(eta, (str, bool)) or not 0 <= eta < np.inf:
        raise ValueError(f"dpmpp-3m-sde: eta must be finite and not negative, got {eta!r}")
    rows = functools.partial(step, eta=float(eta))
    return prediction_table(
        "dpmpp-3m-sde", path, prediction, levels, steps, denoise_last, rows, memories=2
    )
