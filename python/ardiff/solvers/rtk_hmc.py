"""RTK with Hamiltonian Monte Carlo (Duane et al. 1987; Neal 2011) on exp(-g).

A proposal is `leapfrog` steps of length tau on g(z) + |v|^2 / 2,

    v <- v - (tau / 2) G(z),   z <- z + tau v,   v <- v - (tau / 2) G(z),

accepted with probability min(1, e^-dH); a rejection turns v round. Between the proposals of a stage
v is drawn afresh (``refresh="full"``) or in part (``"persistent"``, Horowitz 1991):
v <- c v + sqrt(1 - c^2) xi, c = e^-(gamma tau leapfrog). tau and gamma are in units of the stage's
envelope of width w: tau w and gamma / w. The default of tau depends on `leapfrog` and on `dim`, the
number of elements of a sample, which `ardiff.sample` fills in.
"""

from __future__ import annotations

import math

from ..tables.table import StepTable
from ._rtk import adjusted as metropolis
from ._rtk import stages as rtk

REFRESHES = ("full", "persistent")
default_tau = metropolis.leapfrog_tau


def table(
    path, prediction, levels, steps, *,
    stages=None, inner=None, leapfrog=2, tau=None, refresh="full", gamma=None, accept="trapezoid",
    dim=None, warm_start="ancestral", denoise_last=True,
) -> StepTable:  # fmt: skip
    """Each stage a warm start and `inner` proposals of `leapfrog` steps.

    `inner` is 1 by default, 2 with ``refresh="persistent"``, which shows between proposals alone;
    so does `gamma`, 1 by default there.
    """
    name = "rtk-hmc"
    if refresh not in REFRESHES:
        raise ValueError(f"unknown refresh {refresh!r}; known: {', '.join(REFRESHES)}")
    persistent = refresh == "persistent"
    if gamma is not None and not persistent:
        raise ValueError('rtk-hmc uses gamma with refresh="persistent" alone')
    if persistent and inner == 1:
        raise ValueError('rtk-hmc with refresh="persistent" needs inner=2 or more')
    gamma = 1.0 if gamma is None else gamma
    inner = 1 + persistent if inner is None else inner
    rtk.check_count(leapfrog=leapfrog, dim=dim)
    tau = default_tau(dim, leapfrog) if tau is None else tau
    rtk.check_positive(name, tau=tau, gamma=gamma)
    cost = leapfrog + (metropolis.check_accept(accept) == "simpson")
    plan = metropolis.plan(name, steps, stages, inner, cost, warm_start, denoise_last)
    persistence = math.exp(-gamma * tau * leapfrog) if persistent else 0.0
    return metropolis.hamiltonian_table(
        name, path, prediction, levels(plan.stages + 1), plan,
        kick=tau / 2, drift=tau, leapfrog=leapfrog, persistence=persistence, accept=accept,
    )  # fmt: skip
