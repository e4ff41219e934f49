"""Projected RTK-MALA (Huang et al. 2024, Algorithm 2): MALA that stays in two balls.

As ``rtk-mala``, but a proposal y is rejected unless it lies in B(z, r) and in B(0, R); both are
tested on the proposal. Radii are in data units and the same at every stage when given:

    r = `step_radius`, default 3 sqrt(2 tau w^2 d), three times the usual noise of a step, w the
        width of the stage's envelope; from a Gaussian-factor start 6 tau s sqrt(d) more, its drift;
    R = `ball_radius`, default |m| + 6 s sqrt(d) for each sample, m the mean of the stage's start
        and s its standard deviation.

The defaults need `dim`, the number d of elements of a sample, which `ardiff.sample` fills in; that
of tau depends on it.
"""

from __future__ import annotations

import math

from ..tables.paths import Transition
from ..tables.table import StepTable
from ._rtk import adjusted as metropolis
from ._rtk import stages as rtk

default_tau = metropolis.langevin_tau


def table(
    path, prediction, levels, steps, *,
    stages=None, inner=2, tau=None, accept="trapezoid", ball_radius=None, step_radius=None,
    dim=None, warm_start="ancestral", denoise_last=True,
) -> StepTable:  # fmt: skip
    """Each stage a warm start and `inner` projected adjusted Langevin steps."""
    name = "rtk-mala-projected"
    for option, radius in (("ball_radius", ball_radius), ("step_radius", step_radius)):
        if radius is not None:
            rtk.check_positive(name, **{option: radius})
        elif dim is None:
            raise ValueError(f"{name} without {option} needs dim, the elements of a sample")
    rtk.check_count(dim=dim)
    tau = default_tau(dim) if tau is None else tau
    rtk.check_positive(name, tau=tau)
    cost = 1 + (metropolis.check_accept(accept) == "simpson")
    plan = metropolis.plan(name, steps, stages, inner, cost, warm_start, denoise_last)

    def ball(t: Transition) -> metropolis.Ball:
        ancestral = warm_start == "ancestral"
        spread = t.width if ancestral else math.sqrt(t.s2) / t.r
        margin = 6 * spread * math.sqrt(dim or 0)
        drift = 0.0 if ancestral else tau * margin
        step = step_radius or 3 * math.sqrt(2 * tau * dim) * t.width + drift
        if ball_radius is not None:
            return metropolis.Ball(step, ball_radius, 0.0)
        return metropolis.Ball(step, 0.0, margin)

    return metropolis.langevin_table(name, path, prediction, levels, plan, tau, accept, ball)
