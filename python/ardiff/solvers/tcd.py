"""Trajectory consistency distillation (Zheng et al. 2024, Algorithm 4: strategic sampling).

A jump along the trajectory to a level s cleaner than b, s = (1 - gamma) b in the path's own time,
then noise from s up to b,

    x_s = alpha_s x0 + sigma_s eps,   eps = (x_a - alpha_a x0) / sigma_a,
    x_b = r x_s + sqrt(sigma_b^2 - r^2 sigma_s^2) xi,   r = alpha_b / alpha_s:

gamma = 0 is DDIM, and gamma = 1 ends each jump at level 0. On ``vp-*`` paths s is rounded down to a
timestep that was trained, as in diffusers' TCDScheduler (there `eta`). That ends with a jump to
timestep 0, which is a last level 0 with denoise_last = False; denoise_last goes on to the data.
"""

from __future__ import annotations

import numpy as np

from ..tables.paths import VPPath, transition
from ..tables.table import StepTable, TableBuilder


def table(path, prediction, levels, steps, *, gamma=0.3, denoise_last=True) -> StepTable:
    """`steps` calls, one per step."""
    if isinstance(gamma, (str, bool)) or not 0 <= gamma <= 1:
        raise ValueError(f"tcd: gamma must be in [0, 1], got {gamma!r}")
    grid = levels(steps if denoise_last else steps + 1)
    builder = TableBuilder(path, prediction, "tcd")
    for a, b in zip(grid[:-1], grid[1:], strict=True):
        t, s = transition(path, a, b), (1 - gamma) * b
        if isinstance(path, VPPath) and gamma:
            s = np.floor(s)
        alpha_s, sigma_s = float(path.alpha(s)), float(path.sigma(s))
        r = t.alpha_b / alpha_s
        x_x = r * sigma_s / t.sigma_a
        p_x, p_o = builder.data_prediction(a)
        row = {"x_x": x_x, "x_0": t.alpha_b - x_x * t.alpha_a}
        x_n = np.sqrt(max(t.sigma_b**2 - (r * sigma_s) ** 2, 0.0))
        builder.add("diffusion", a, p_x=p_x, p_o=p_o, **row, x_n=x_n)
    return builder.finish(grid[-1] if denoise_last else None)
