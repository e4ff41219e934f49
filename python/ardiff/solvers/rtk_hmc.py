"""RTK with Hamiltonian Monte Carlo (Duane et al. 1987; Neal 2011) on exp(-g).

A proposal is `leapfrog` steps of length tau on g(z) + |v|^2 / 2,

    v <- v - (tau / 2) G(z),   z <- z + tau v,   v <- v - (tau / 2) G(z),

accepted with probability min(1, e^-dH); a rejection turns v round. Between the proposals of a stage
v is drawn afresh (``refresh="full"``) or in part (``"persistent"``, Horowitz 1991):
v <- c v + sqrt(1 - c^2) xi, c = e^-(gamma tau leapfrog). tau and gamma are in units of the stage's
envelope of width w: tau w and gamma / w.
"""

from __future__ import annotations

import math

from .. import metropolis, rtk
from ..table import StepTable

REFRESHES = ("full", "persistent")


def table(
    path, prediction, levels, steps, *,
    stages=None, inner=1, leapfrog=2, tau=0.7, refresh="full", gamma=1.0, accept="trapezoid",
    warm_start="ancestral", denoise_last=True,
) -> StepTable:  # fmt: skip
    """Each stage a warm start and `inner` proposals of `leapfrog` steps."""
    rtk.check_positive("rtk-hmc", tau=tau, gamma=gamma)
    rtk.check_count(leapfrog=leapfrog)
    if refresh not in REFRESHES:
        raise ValueError(f"unknown refresh {refresh!r}; known: {', '.join(REFRESHES)}")
    cost = leapfrog + (metropolis.check_accept(accept) == "simpson")
    plan = metropolis.plan("rtk-hmc", steps, stages, inner, cost, warm_start, denoise_last)
    persistence = 0.0 if refresh == "full" else math.exp(-gamma * tau * leapfrog)
    return metropolis.hamiltonian_table(
        "rtk-hmc", path, prediction, levels(plan.stages + 1), plan,
        kick=tau / 2, drift=tau, leapfrog=leapfrog, persistence=persistence, accept=accept,
    )  # fmt: skip
