"""UniPC-2 (Zhao et al. 2023, Algorithms 5 and 6, data prediction, B(h) = e^-h - 1, "bh2").

A step from level a to b predicts x_b, and when the model has been called there the step is made
once more with what it says: the corrector costs no call. With h the step in log(alpha / sigma), h'
the one before, r = h' / h, x0 the data prediction at a and x0' the one before,

    x~_b = sigma_b / sigma_a x_a + alpha_b (1 - e^-h) (x0 + 1/2 (x0 - x0') / r)         UniP-2
    x_b  = x~_b + alpha_b (1 - e^-h) ((rho_1 - 1/2) (x0 - x0') / r + rho_2 (x0_b - x0)) UniC-2

where x0_b is the prediction at x~_b, which the next step takes over, and rho solves

    rho_1 + rho_2 = b_1 = 1 / (1 - e^-h) - 1 / h,
    rho_2 - r rho_1 = b_2 = 1 / (1 - e^-h) - 2 / (h (1 - e^-h)) + 2 / h^2.

The first step has no x0': it is of first order, x0' = x0 and rho_2 = 1/2. The last data prediction
needs no corrector.

A row has the call at b: it corrects the step that came there and predicts the next, in one affine
map of x~_b, x0_b, x0 (memory) and x0' (memory2).
"""

from __future__ import annotations

import numpy as np

from ..tables.paths import Transition, transition
from ..tables.table import StepTable, TableBuilder


def correction(t: Transition, before: Transition | None) -> tuple[float, float]:
    """What UniC adds at the end of step `t`: weights of (x0 - x0') and of (x0_b - x0)."""
    k = -np.expm1(-t.h)
    if before is None:
        return 0.0, t.alpha_b * k / 2
    r = before.h / t.h
    b_1, b_2 = 1 / k - 1 / t.h, 1 / k - 2 / (t.h * k) + 2 / t.h**2
    rho_1 = (b_1 - b_2) / (1 + r)
    return t.alpha_b * k * (rho_1 - 0.5) / r, t.alpha_b * k * (b_1 - rho_1)


def step(t: Transition, last: Transition | None, before: Transition | None) -> dict[str, float]:
    """The step `t`, which corrects the step `last`; `before` is the one before that."""
    fall, gain = t.sigma_b / t.sigma_a, -t.alpha_b * np.expm1(-t.h)
    slope, old, new = 0.0, 0.0, 0.0
    if last is not None:
        slope = gain * t.h / (2 * last.h)
        old, new = (fall * weight for weight in correction(last, before))
    return {
        "x_x": fall - old,
        "x_0": gain + slope + new,
        "x_m": old - slope - new,
        "x_d": old,  # old (x~ - memory2): with x_x, -old on memory2
        "m_0": 1.0,
        "s_m": 1.0,
    }


def table(path, prediction, levels, steps, *, denoise_last=True) -> StepTable:
    """`steps` calls, one per step."""
    grid = levels(steps if denoise_last else steps + 1)
    builder = TableBuilder(path, prediction, "unipc-2")
    before, last = None, None
    for a, b in zip(grid[:-1], grid[1:], strict=True):
        t = transition(path, a, b)
        p_x, p_o = builder.data_prediction(a)
        builder.add("diffusion", a, p_x=p_x, p_o=p_o, **step(t, last, before))
        before, last = last, t
    return builder.finish(grid[-1] if denoise_last else None)
