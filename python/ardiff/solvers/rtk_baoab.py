"""RTK with BAOAB (Leimkuhler & Matthews 2013): kick, drift, Ornstein-Uhlenbeck, drift, kick.

    B: v <- v - (tau / 2) G(z)      A: z <- z + (tau / 2) v
    O: v <- c v + sqrt(1 - c^2) xi,  c = e^-(gamma tau)

Its stationary law is exact in z on a Gaussian. The last kick of a step and the first of the next
use the same force, so they are one: a row is kick, A, O, A with one call and one normal, its kick
half at the beginning of a stage and whole after, and the last half kick, which cannot move z, is
dropped. gamma and tau are in units of the stage's envelope of width w: gamma / w and tau w.
"""

from __future__ import annotations

import numpy as np

from ..tables.table import StepTable
from ._rtk import stages as rtk


def move(gamma: float, tau: float, first: bool) -> dict[str, float]:
    """One merged step with friction `gamma` and step `tau` in data units."""
    kick = tau / 2 if first else tau
    c, noise = np.exp(-gamma * tau), np.sqrt(-np.expm1(-2 * gamma * tau))
    drift = tau / 2 * (1 + c)
    return {
        "z_v": drift,
        "z_g": drift * kick,
        "z_1": tau / 2 * noise,
        "v_v": c,
        "v_g": c * kick,
        "v_1": noise,
    }


def table(
    path, prediction, levels, steps, *,
    stages=None, inner=None, gamma=2.0, tau=0.4, warm_start="ancestral", denoise_last=True,
) -> StepTable:  # fmt: skip
    """Each stage a warm start and `inner` BAOAB steps."""
    name = "rtk-baoab"
    rtk.check_positive(name, gamma=gamma, tau=tau)
    plan = rtk.plan(name, steps, stages, inner, warm_start, denoise_last)
    return rtk.kinetic_table(
        name, path, prediction, levels, plan,
        lambda t, i: move(gamma / t.width, tau * t.width, first=i == 0),
    )  # fmt: skip
