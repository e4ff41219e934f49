"""RTK with UBU (Zapatero 2017; Sanz-Serna & Zygalakis 2021): half flow, kick, half flow.

    U(t): z <- z + (A / gamma) v + xi_z,  v <- e^-(gamma t) v + xi_v     (no force: exact)
    B:    v <- v - tau G(z)

with A = 1 - e^-(gamma t) and (xi_z, xi_v) of the exact joint covariance over t. The half flow that
ends a step and the one that begins the next are one U(tau), so a row, with one call and two
normals, is B U(tau), and the last of a stage B U(tau / 2). The first half flow is folded into the
start: from z0 = m + w n and a fresh v0 it gives a Gaussian with

    Var v = 1,  Cov(z, v) = A_h / gamma (e_h + A_h) = A_h / gamma,
    Var z = w^2 + (A_h / gamma)^2 + Var xi_z(tau / 2),

made from two normals as v = n1, z = m + (A_h / gamma) n1 + sqrt(w^2 + Var xi_z) n2. gamma and tau
are in units of the stage's envelope of width w: gamma / w and tau w.
"""

from __future__ import annotations

import numpy as np

from ardiff_kernels import host

from ..tables.table import StepTable
from ._rtk import stages as rtk


def move(gamma: float, tau: float, last: bool) -> dict[str, float]:
    """One merged step with friction `gamma` and step `tau` in data units."""
    c = host.uld_coefficients(gamma, tau / 2 if last else tau)
    return {
        "z_v": c["z_from_v"],
        "z_g": tau * c["z_from_v"],
        "z_1": c["z_1"],
        "z_2": c["z_2"],
        "v_v": c["v_from_v"],
        "v_g": tau * c["v_from_v"],
        "v_1": c["v_1"],
    }


def fold(start: dict[str, float], gamma: float, tau: float) -> dict[str, float]:
    """The columns of a stage's start with the half flow that begins its first step."""
    c = host.uld_coefficients(gamma, tau / 2)
    z_2 = np.sqrt(start["z_2"] ** 2 + c["var_z"])
    return {**start, "z_1": c["z_from_v"], "z_2": z_2}


def table(
    path, prediction, levels, steps, *,
    stages=None, inner=None, gamma=2.0, tau=0.4, warm_start="ancestral", denoise_last=True,
) -> StepTable:  # fmt: skip
    """Each stage a warm start and `inner` UBU steps."""
    name = "rtk-ubu"
    rtk.check_positive(name, gamma=gamma, tau=tau)
    plan = rtk.plan(name, steps, stages, inner, warm_start, denoise_last)
    return rtk.kinetic_table(
        name, path, prediction, levels, plan,
        lambda t, i: move(gamma / t.width, tau * t.width, last=i == plan.inner - 1),
        lambda t, start: fold(start, gamma / t.width, tau * t.width),
    )  # fmt: skip
