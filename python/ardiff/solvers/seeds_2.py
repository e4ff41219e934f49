"""SEEDS-2 (Gonzalez et al. 2023), data prediction, in the form of ComfyUI's `sample_seeds_2`.

Two calls a step, at the shares 0 and r of it in log(alpha / sigma), and an exact noise process that
the stages share (`solvers/_tableau.py`), of strength eta. With H = (1 + eta) h,

    a_21 = r phi_1(-r H),
    b_2 = phi_1(-H) / (2 r)  (solver_type ``phi_1``)  or  phi_2(-H) / r  (``phi_2``),
    b_1 = phi_1(-H) - b_2.

eta = 0 with ``phi_2`` is ``res-2s``, and r = 1 is ComfyUI's `exp_heun_2_x0`.
"""

from __future__ import annotations

from ..tables.table import StepTable
from ._ancestral import check_eta
from ._tableau import Tableau, phi, tableau_table

SOLVER_TYPES = ("phi_1", "phi_2")


def tableau(r: float, solver_type: str) -> Tableau:
    def b_2(z: float) -> float:
        return phi(1, z) / (2 * r) if solver_type == "phi_1" else phi(2, z) / r

    A = [[0, 0], [lambda z: r * phi(1, r * z), 0]]
    return Tableau(A, [lambda z: phi(1, z) - b_2(z), b_2], [0, r])


def table(
    path, prediction, levels, steps, *, eta=1.0, r=0.5, solver_type="phi_1", denoise_last=True
) -> StepTable:
    """As many steps of two calls as fit, then the data prediction."""
    eta = check_eta("seeds-2", eta)
    if isinstance(r, (str, bool)) or not 0 < r <= 1:
        raise ValueError(f"seeds-2: r must be above 0 and at most 1, got {r!r}")
    if solver_type not in SOLVER_TYPES:
        known = ", ".join(SOLVER_TYPES)
        raise ValueError(f"unknown solver_type {solver_type!r}; known: {known}")
    place = path, prediction, levels, steps, denoise_last
    return tableau_table("seeds-2", tableau(float(r), solver_type), *place, eta)
