"""RTK in posterior coordinates with one overdamped harmonic step per stage, for one call.

Where .1 <= s_b <= .7 the inner step q <- e q + (1 - e) F + sqrt(1 - e^2) xi, e = e^-tau, integrates
the known Gaussian exactly with the residual force F frozen; elsewhere the second-order ancestral
start alone is the stage. See :mod:`ardiff.solvers._rtk.harmonic`.
"""

from __future__ import annotations

import math

from ..tables.table import StepTable
from ._rtk import harmonic as posterior
from ._rtk import stages as rtk


def table(
    path, prediction, levels, steps, *,
    tau=0.4, window_low=0.1, window_high=0.7, warm_start="second-order", denoise_last=True,
) -> StepTable:  # fmt: skip
    """A call per stage, `steps` at most; `warm_start` is that of the stages in the window."""
    name = "rtk-harmonic"
    rtk.check_positive(name, tau=tau)
    posterior.check_warm_start(warm_start)
    window = rtk.window(name, window_low, window_high)
    inner = posterior.Inner(math.exp(-tau), -math.expm1(-tau), window, warm_start)
    return posterior.table(
        name, path, prediction, levels, steps, denoise_last, inner, posterior.ancestral,
        extrapolates=warm_start != "ancestral", without="the ancestral step alone",
    )  # fmt: skip
