"""SEEDS-3 (Gonzalez et al. 2023), data prediction, in the form of ComfyUI's `sample_seeds_3`.

Three calls a step, at the shares 0, r_1 and r_2 of it in log(alpha / sigma), and an exact noise
process that the stages share (`solvers/_tableau.py`), of strength eta. With H = (1 + eta) h,

    a_21 = r_1 phi_1(-r_1 H),   a_32 = r_2^2 / r_1 phi_2(-r_2 H),   a_31 = r_2 phi_1(-r_2 H) - a_32,
    b_3 = phi_2(-H) / r_2,      b_2 = 0,                            b_1 = phi_1(-H) - b_3.
"""

from __future__ import annotations

from ..tables.table import StepTable
from ._ancestral import check_eta
from ._tableau import Tableau, phi, tableau_table


def tableau(r_1: float, r_2: float) -> Tableau:
    def a_32(z: float) -> float:
        return r_2**2 / r_1 * phi(2, r_2 * z)

    def b_3(z: float) -> float:
        return phi(2, z) / r_2

    A = [
        [0, 0, 0],
        [lambda z: r_1 * phi(1, r_1 * z), 0, 0],
        [lambda z: r_2 * phi(1, r_2 * z) - a_32(z), a_32, 0],
    ]
    return Tableau(A, [lambda z: phi(1, z) - b_3(z), 0, b_3], [0, r_1, r_2])


def table(
    path, prediction, levels, steps, *, eta=1.0, r_1=1 / 3, r_2=2 / 3, denoise_last=True
) -> StepTable:
    """As many steps of three calls as fit, then the data prediction."""
    eta = check_eta("seeds-3", eta)
    if any(isinstance(r, (str, bool)) for r in (r_1, r_2)) or not 0 < r_1 < r_2 <= 1:
        raise ValueError(f"seeds-3: needs 0 < r_1 < r_2 <= 1, got r_1={r_1!r} and r_2={r_2!r}")
    place = path, prediction, levels, steps, denoise_last
    return tableau_table("seeds-3", tableau(float(r_1), float(r_2)), *place, eta)
