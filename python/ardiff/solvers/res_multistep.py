"""RES, the refined exponential solver (Zhang et al. 2023), second order multistep, as in ComfyUI.

In y = x / alpha, with s = sigma / alpha, h = log(s_a / s_b), h' the step before, x0 the data
prediction and x0' the one before,

    y_b = e^-h y_a + (1 - e^-h) x0 + h^2 / h' phi_2 (x0 - x0'),  phi_2 = (1 - (1 - e^-h) / h) / h.

The first step, and the last data prediction, take x0' = x0. With `eta` a step goes to a lower s_d
in place of s_b (and h' is to its own), and noise of variance s_u^2 = s_b^2 - s_d^2 brings it back,

    s_u = min(s_b, eta s_b sqrt(1 - s_b^2 / s_a^2)),

which ComfyUI calls ancestral. On a rectified flow the step is made in y = x and s = sigma, as
there, and the noise is that of the path, where ComfyUI takes the formula above for sigma itself.

With `cfg_pp` (CFG++, Chung et al. 2024; ComfyUI's `sample_res_multistep_cfg_pp`) x0 and x0' above
are the predictions without the condition, x0u and x0u', and e^-h (x0 - x0u) is added to y_b, in the
first step x0 - x0u.
"""

from __future__ import annotations

import numpy as np

from ..tables.paths import FlowPath, transition
from ..tables.table import StepTable, TableBuilder
from ._multistep import check_flag


def table(
    path, prediction, levels, steps, *, eta=0.0, cfg_pp=False, denoise_last=True
) -> StepTable:
    """`steps` calls, one per step."""
    check_flag("res-multistep", "cfg_pp", cfg_pp)
    if isinstance(eta, (str, bool)) or not 0 <= eta < np.inf:
        raise ValueError(f"res-multistep: eta must be finite and not negative, got {eta!r}")
    grid = levels(steps if denoise_last else steps + 1)
    builder, before = TableBuilder(path, prediction, "res-multistep"), None
    flow = isinstance(path, FlowPath)
    for a, b in zip(grid[:-1], grid[1:], strict=True):
        t = transition(path, a, b)
        fresh = min(eta**2 * -np.expm1(-2 * t.h), 1.0)  # (s_u / s_b)^2
        kept = np.sqrt(1 - fresh)  # s_d / s_b
        # x_b = scale y_d + noise, y_d at s_d
        scale, s_a, s_d = t.alpha_b, float(path.ratio(a)), float(path.ratio(b)) * kept
        if flow:
            scale, s_a, s_d = t.alpha_b + t.sigma_b * kept, t.sigma_a, s_d / (1 + s_d)
        with np.errstate(divide="ignore"):
            h = float(np.log(s_a) - np.log(s_d))
        gain, slope = 1 - s_d / s_a, 0.0
        if before is not None and np.isfinite(h):
            slope = (1 - gain / h) * h / before
        p_x, p_o = builder.data_prediction(a)
        columns = {"x_x": scale * s_d / t.sigma_a, "x_0": scale * (gain + slope)}
        columns |= {"x_m": -scale * slope, "x_n": t.sigma_b * np.sqrt(fresh), "m_0": 1.0}
        if cfg_pp:
            given = scale * (1.0 if before is None else s_d / s_a)
            columns |= {"x_0": given, "x_u": columns["x_0"] - given}
            columns |= {"m_0": 0.0, "m_u": 1.0}
        builder.add("diffusion", a, p_x=p_x, p_o=p_o, **columns)
        before = h
    return builder.finish(grid[-1] if denoise_last else None)
