"""Gradient estimation (Permenter & Yuan 2024, Algorithm 2), as in ComfyUI.

With d = (y - x0) / t the slope of the probability flow at level a and d' the one before,

    y_b = y_a + (t_b - t_a) (g d + (1 - g) d'),

g = `ge_gamma`; the first step is Euler's, as all are with g = 1, and the last the data prediction.
(y, t) is (x / alpha, sigma / alpha), but (x, sigma) on a rectified flow.

With `cfg_pp` (CFG++, Chung et al. 2024; ComfyUI's `sample_gradient_estimation_cfg_pp`) the slopes
are those of the prediction without the condition, x0u, and x0 - x0u is added to y_b.
"""

from __future__ import annotations

import numpy as np

from ..tables.table import StepTable
from ._multistep import check_flag, slope_table


def table(
    path, prediction, levels, steps, *, ge_gamma=2.0, cfg_pp=False, denoise_last=True
) -> StepTable:
    """`steps` calls, one per step."""
    check_flag("gradient-estimation", "cfg_pp", cfg_pp)
    if isinstance(ge_gamma, (str, bool)) or not np.isfinite(ge_gamma):
        raise ValueError(f"gradient-estimation: ge_gamma must be finite, got {ge_gamma!r}")

    def older(nodes: np.ndarray, t_b: float, left: int) -> list[float]:
        return [(1 - ge_gamma) * (t_b - nodes[0])]

    where = "gradient-estimation", path, prediction, levels, steps, denoise_last
    return slope_table(*where, older, order=2, cfg_pp=bool(cfg_pp))
