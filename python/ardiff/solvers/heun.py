"""Heun's method in the form of Karras et al. 2022 (Algorithm 1 without churn), of second order.

With y = x / alpha, s = sigma / alpha and D the data prediction, dy/ds = (y - D) / s: an Euler step
to y1, then the mean of the slopes at both ends. Written from y1, which is the state the second call
sees, with D the prediction at the first call and D1 at the second,

    y_b = y1 + (s_a / s_b - 1) / 2 (D1 - D),

so a step is two rows: the Euler (DDIM) row, whose memory becomes D, and the correction.
"""

from __future__ import annotations

import numpy as np

from ..tables.paths import transition
from ..tables.table import StepTable, TableBuilder
from . import ddim


def table(path, prediction, levels, steps, *, denoise_last=True) -> StepTable:
    """As many steps of two calls as fit, then the data prediction."""
    count = (steps - int(denoise_last)) // 2
    if count < 1:
        raise ValueError(
            f"heun makes two model calls per step: it needs steps >= {2 + int(denoise_last)}, got "
            f"steps={steps}"
        )
    grid, builder = levels(count + 1), TableBuilder(path, prediction, "heun")
    for a, b in zip(grid[:-1], grid[1:], strict=True):
        add_step(builder, a, b)
    return builder.finish(grid[-1] if denoise_last else None)


def add_step(builder: TableBuilder, a: float, b: float) -> None:
    """The two rows of the step from level `a` to `b`."""
    t = transition(builder.path, a, b)
    if t.alpha_a == 0:
        raise ValueError("heun cannot start at alpha = 0, an infinite sigma; start below it")
    p_x, p_o = builder.data_prediction(a)
    builder.add("diffusion", a, p_x=p_x, p_o=p_o, m_0=1.0, **ddim.step(t, None))
    p_x, p_o = builder.data_prediction(b)
    gain = t.alpha_b * np.expm1(t.h) / 2
    builder.add("diffusion", b, p_x=p_x, p_o=p_o, x_x=1.0, x_0=gain, x_m=-gain)
