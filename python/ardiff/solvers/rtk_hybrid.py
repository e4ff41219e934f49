"""A predictor-corrector: DPM-Solver++(2M), and a harmonic RTK step in a window.

Where .1 <= s_b <= .25 a stage is that of ``rtk-harmonic`` with gain .5 on the residual force, no
exact kernel; elsewhere it is a deterministic step of DPM-Solver++(2M) (Lu et al. 2022),
x_b = sigma_b / sigma_a x_a + alpha_b (1 - e^-h) De. See :mod:`ardiff.solvers._rtk.harmonic`.
"""

from __future__ import annotations

import math

import numpy as np

from ..tables.paths import Transition
from ..tables.table import StepTable
from ._rtk import harmonic as posterior
from ._rtk import stages as rtk


def ode(t: Transition) -> posterior.Mean:
    """The step outside the window."""
    return t.sigma_b / t.sigma_a, -t.alpha_b * np.expm1(-t.h), 0.0


def table(
    path, prediction, levels, steps, *,
    tau=0.4, gain=0.5, window_low=0.1, window_high=0.25, warm_start="second-order",
    denoise_last=True,
) -> StepTable:  # fmt: skip
    """A call per stage, `steps` at most; `warm_start` is that of the stages in the window."""
    name = "rtk-hybrid"
    rtk.check_positive(name, tau=tau, gain=gain)
    posterior.check_warm_start(warm_start)
    window = rtk.window(name, window_low, window_high)
    inner = posterior.Inner(math.exp(-tau), gain, window, warm_start)
    return posterior.table(
        name, path, prediction, levels, steps, denoise_last, inner, ode, extrapolates=True,
        without="dpmpp-2m",
    )  # fmt: skip
