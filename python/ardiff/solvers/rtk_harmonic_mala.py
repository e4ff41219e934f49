"""RTK-MALA in posterior coordinates: kick, rotate, kick, and accept.

With y = x / alpha and s = sigma / alpha, the stage's known Gaussian N(m(De), V), where
m(D) = k y_a + (1 - k) D, k = (s_b / s_a)^2, V = s_b^2 (1 - k), is rotated exactly in
q = (y - m(De)) / sqrt(V); the model enters by the residual force F = (1 - k)(D_b - De) / sqrt(V).
A proposal is v += tan(tau / 2) F, (q, v) rotated by tau, v += tan(tau / 2) F, accepted with
probability min(1, e^-dH), dH = (|q'|^2 - |q|^2 + |v'|^2 - |v|^2) / 2 - integral of F over the line.

The gradient of g in q is q - F, so that with t = tan(tau / 2), sin tau = s, cos tau = 1 - s t,

    q' = cos tau q + s (v + t F) = q + s (v - t (q - F)),
    v' = cos tau (v + t F) - s q + t F' = v - t (q - F) - t (q' - F'):

a leapfrog step whose half kick is tan(tau / 2) and whose drift is sin tau. De cancels, and the rows
are those of HMC in units of the envelope, whose width is alpha_b sqrt(V). The velocity is fresh at
the start of a stage; between its proposals v <- c v + sqrt(1 - c^2) xi, c = e^-(gamma tau), and a
rejection turns it round. Stages with s_b outside .1 to .7 are an ancestral step of
second order alone, as in ``rtk-harmonic``.
"""

from __future__ import annotations

import math

from ..tables.table import StepTable
from ._rtk import adjusted as metropolis
from ._rtk import stages as rtk


def table(
    path, prediction, levels, steps, *,
    stages=None, inner=3, tau=1.2, gamma=0.6, window_low=0.1, window_high=0.7, accept="trapezoid",
    warm_start="ancestral", denoise_last=True,
) -> StepTable:  # fmt: skip
    """As many stages as `steps` calls allow, in the window with `inner` rotations by `tau`."""
    name = "rtk-harmonic-mala"
    rtk.check_positive(name, tau=tau)
    if tau >= math.pi:
        raise ValueError(f"{name}: tau is an angle below pi, got {tau}")
    if isinstance(gamma, str) or not gamma >= 0:
        raise ValueError(f"{name}: gamma must be 0 or more, got {gamma!r}")
    rtk.check_warm_start(warm_start)
    rtk.check_count(stages=stages, inner=inner)
    window = rtk.window(name, window_low, window_high)
    cost = 1 + (metropolis.check_accept(accept) == "simpson")
    plan = metropolis.Plan(stages or steps, inner, cost, warm_start, denoise_last)
    grid = rtk.fit_grid(
        name, levels, plan.stages + 1 - int(denoise_last and stages is None),
        lambda grid: metropolis.windowed_calls(path, grid, plan, window), steps,
    )  # fmt: skip
    if stages is not None and len(grid) != stages + 1:
        raise ValueError(f"{name} with stages={stages} makes more model calls than steps={steps}")
    window.warn_if_empty(name, path, grid, "the ancestral step alone", stacklevel=5)
    return metropolis.hamiltonian_table(
        name, path, prediction, grid, plan, kick=math.tan(tau / 2), drift=math.sin(tau),
        leapfrog=1, persistence=math.exp(-gamma * tau), accept=accept, window=window,
    )  # fmt: skip
