"""RTK-MALA (Huang et al. 2024, Algorithm 2): Metropolis-adjusted Langevin steps on exp(-g).

Proposal y = z - tau G(z) + sqrt(2 tau) xi, G = grad g, taken with probability
min(1, e^log_alpha); see :mod:`ardiff.solvers._rtk.adjusted` for log_alpha and the rules `accept`.
tau is in units of the stage's envelope of width w: the step is tau w^2. Its default depends on
`dim`, the number of elements of a sample, which `ardiff.sample` fills in.
"""

from __future__ import annotations

from ..tables.table import StepTable
from ._rtk import adjusted as metropolis
from ._rtk import stages as rtk

default_tau = metropolis.langevin_tau


def table(
    path, prediction, levels, steps, *,
    stages=None, inner=2, tau=None, accept="trapezoid", dim=None, warm_start="ancestral",
    denoise_last=True,
) -> StepTable:  # fmt: skip
    """Each stage a warm start and `inner` adjusted Langevin steps."""
    name = "rtk-mala"
    rtk.check_count(dim=dim)
    tau = default_tau(dim) if tau is None else tau
    rtk.check_positive(name, tau=tau)
    cost = 1 + (metropolis.check_accept(accept) == "simpson")
    plan = metropolis.plan(name, steps, stages, inner, cost, warm_start, denoise_last)
    return metropolis.langevin_table(name, path, prediction, levels, plan, tau, accept)
