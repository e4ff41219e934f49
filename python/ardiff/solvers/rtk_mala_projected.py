"""Projected RTK-MALA (Huang et al. 2024, Algorithm 2): MALA that stays in two balls.

As ``rtk-mala``, but a proposal y is rejected unless it lies in B(z, r) and in B(0, R); both are
tested on the proposal. Radii are in data units and the same at every stage when given:

    r = `step_radius`, default 3 sqrt(2 tau w^2 d), three times the usual length of a step;
    R = `ball_radius`, default |m| + 6 w sqrt(d) for each sample, m the mean of the stage's start
        and w the start's standard deviation.

The defaults need `dim`, the number d of elements of a sample, which `ardiff.sample` fills in.
"""

from __future__ import annotations

import math

from .. import metropolis, rtk
from ..paths import Transition
from ..table import StepTable


def table(
    path, prediction, levels, steps, *,
    stages=None, inner=2, tau=0.4, accept="trapezoid", ball_radius=None, step_radius=None, dim=None,
    warm_start="ancestral", denoise_last=True,
) -> StepTable:  # fmt: skip
    """Each stage a warm start and `inner` projected adjusted Langevin steps."""
    name = "rtk-mala-projected"
    rtk.check_positive(name, tau=tau)
    for option, radius in (("ball_radius", ball_radius), ("step_radius", step_radius)):
        if radius is not None:
            rtk.check_positive(name, **{option: radius})
        elif dim is None:
            raise ValueError(f"{name} without {option} needs dim, the elements of a sample")
    rtk.check_count(dim=dim)
    cost = 1 + (metropolis.check_accept(accept) == "simpson")
    plan = metropolis.plan(name, steps, stages, inner, cost, warm_start, denoise_last)

    def ball(t: Transition) -> metropolis.Ball:
        step = step_radius or 3 * math.sqrt(2 * tau * dim) * t.width
        if ball_radius is not None:
            return metropolis.Ball(step, ball_radius, 0.0)
        spread = t.width if warm_start == "ancestral" else math.sqrt(t.s2) / t.r
        return metropolis.Ball(step, 0.0, 6 * spread * math.sqrt(dim))

    return metropolis.langevin_table(name, path, prediction, levels, plan, tau, accept, ball)
