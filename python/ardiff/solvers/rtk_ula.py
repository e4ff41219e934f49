"""RTK with unadjusted Langevin: z' = z - tau G + sqrt(2 tau) xi, G = grad g(z).

tau is in units of the stage's envelope of width w: the step is tau w^2. The default is below the
kinetic solvers' 0.4, since the bias in variance is of first order in tau.
"""

from __future__ import annotations

from ..tables.paths import transition
from ..tables.table import StepTable, TableBuilder
from ._rtk import stages as rtk


def table(
    path, prediction, levels, steps, *,
    stages=None, inner=None, tau=0.3, warm_start="ancestral", denoise_last=True,
) -> StepTable:  # fmt: skip
    """Each stage a warm start and `inner` overdamped Langevin steps."""
    name = "rtk-ula"
    rtk.check_positive(name, tau=tau)
    plan = rtk.plan(name, steps, stages, inner, warm_start, denoise_last)
    grid, builder = levels(plan.stages + 1), TableBuilder(path, prediction, name)
    for a, b in zip(grid[:-1], grid[1:], strict=True):
        t = transition(path, a, b)
        start = rtk.overdamped_start(prediction, t, warm_start)
        builder.add("diffusion", a, calls_model=warm_start == "ancestral", **start)
        for _ in range(plan.inner):
            columns = rtk.overdamped_columns(prediction, t, tau * t.width**2)
            builder.add("diffusion", b, **columns)
    return builder.finish(grid[-1] if denoise_last else None)
