"""iPNDM (Zhang & Chen 2023, after Liu et al. 2022), of order 1 to 4, as in ComfyUI.

Adams-Bashforth's weights for equal steps, on steps of any length. With d = (y - x0) / t the slope
of the probability flow at level a and d', d'', d''' those before,

    y_b = y_a + (t_b - t_a) D,   D = d, then (3 d - d') / 2, (23 d - 16 d' + 5 d'') / 12 and
                                 (55 d - 59 d' + 37 d'' - 9 d''') / 24;

the last step is the data prediction. (y, t) is (x / alpha, sigma / alpha), but (x, sigma) on a
rectified flow. The weights for the steps' own lengths are those of `lms`.
"""

from __future__ import annotations

import numpy as np

from ..tables.table import StepTable
from ._multistep import check_integer, slope_table

OLDER = {
    2: np.array([-1]) / 2,
    3: np.array([-16, 5]) / 12,
    4: np.array([-59, 37, -9]) / 24,
}


def older(nodes: np.ndarray, t_b: float, left: int) -> np.ndarray:
    return (t_b - nodes[0]) * OLDER[len(nodes)]


def table(path, prediction, levels, steps, *, order=4, denoise_last=True) -> StepTable:
    """`steps` calls, one per step."""
    check_integer("ipndm", "order", order, 1, 4)
    return slope_table("ipndm", path, prediction, levels, steps, denoise_last, older, order=order)
