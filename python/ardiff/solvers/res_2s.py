"""RES-2s (Zhang et al. 2023, the single-step Refined Exponential Solver), two calls a step.

The exponential Runge-Kutta method of two stages that meets all conditions of order two, its second
stage at c2 of the step in log(alpha / sigma): a_21 = c2 phi_1(-c2 h), b_2 = phi_2(-h) / c2 and
b_1 = phi_1(-h) - b_2, in the notation of `solvers/_tableau.py`.
"""

from __future__ import annotations

from ..tables.table import StepTable
from ._tableau import Tableau, phi, tableau_table


def tableau(c2: float) -> Tableau:
    b_2 = lambda z: phi(2, z) / c2  # noqa: E731
    A = [[0, 0], [lambda z: c2 * phi(1, c2 * z), 0]]
    return Tableau(A, [lambda z: phi(1, z) - b_2(z), b_2], [0, c2])


def table(path, prediction, levels, steps, *, c2=0.5, denoise_last=True) -> StepTable:
    """As many steps of two calls as fit, then the data prediction."""
    if isinstance(c2, (str, bool)) or not 0 < c2 <= 1:
        raise ValueError(f"res-2s: c2 must be above 0 and at most 1, got {c2!r}")
    place = path, prediction, levels, steps, denoise_last
    return tableau_table("res-2s", tableau(float(c2)), *place)
