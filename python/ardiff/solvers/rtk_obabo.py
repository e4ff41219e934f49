"""RTK with OBABO (Bussi & Parrinello 2007): refresh, kick, drift, kick, refresh.

    O: v <- c_h v + sqrt(1 - c_h^2) xi,  c_h = e^-(gamma tau / 2)
    B: v <- v - (tau / 2) G(z)           A: z <- z + tau v

The end of a step and the beginning of the next, B O O B, use one force and leave z where it is, and
O O is one O with c = e^-(gamma tau). So a row, with one call and one normal, is B O B A:

    v' = c v - (1 + c) (tau / 2) G + sqrt(1 - c^2) xi,    z' = z + tau v'.

At the beginning of a stage v is fresh and O leaves its law, so the first row is B A; the last B O,
which cannot move z, is dropped. gamma and tau are in units of the stage's envelope of width w:
gamma / w and tau w.
"""

from __future__ import annotations

import numpy as np

from ..tables.table import StepTable
from ._rtk import stages as rtk


def move(gamma: float, tau: float, first: bool) -> dict[str, float]:
    """One merged step with friction `gamma` and step `tau` in data units."""
    c, noise = np.exp(-gamma * tau), np.sqrt(-np.expm1(-2 * gamma * tau))
    kick = (1 + c) * tau / 2
    if first:
        c, noise, kick = 1.0, 0.0, tau / 2
    return {
        "z_v": tau * c,
        "z_g": tau * kick,
        "z_1": tau * noise,
        "v_v": c,
        "v_g": kick,
        "v_1": noise,
    }


def table(
    path, prediction, levels, steps, *,
    stages=None, inner=None, gamma=2.0, tau=0.4, warm_start="ancestral", denoise_last=True,
) -> StepTable:  # fmt: skip
    """Each stage a warm start and `inner` OBABO steps."""
    name = "rtk-obabo"
    rtk.check_positive(name, gamma=gamma, tau=tau)
    plan = rtk.plan(name, steps, stages, inner, warm_start, denoise_last)
    return rtk.kinetic_table(
        name, path, prediction, levels, plan,
        lambda t, i: move(gamma / t.width, tau * t.width, first=i == 0),
    )  # fmt: skip
