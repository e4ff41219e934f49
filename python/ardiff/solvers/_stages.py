"""The rows of a step of an explicit Runge-Kutta method, of up to four stages.

A step begins at x and calls the model at its stages; the state after each call is a combination of
x, of the data predictions D_1, D_2, ... so far, and of noise. A row sees the state after the call
before, not x; but that state holds x, so the row adds to it what it lacks. The predictions before
the last are in the memories, which shift: D_(k-1), D_(k-2) and D_(k-3) at the k-th call.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..tables.paths import Path
from ..tables.table import TableBuilder

MAX_STAGES = 4


def add_stages(
    builder: TableBuilder,
    levels: Sequence[float],
    scales: Sequence[float],
    states: Sequence[np.ndarray],
    noise: Sequence[float] | None = None,
) -> None:
    """Adds a row for each call of a step of s stages.

    Args:
        levels: s levels, at which the model is called.
        scales: s + 1 numbers c, of the state at each call and after the last, most often alpha.
        states: s vectors of s + 1 weights: after the k-th call the state is c times the combination
            of y = x / c at the beginning and D_1 to D_s by the k-th vector.
        noise: s numbers x_n, the fresh noise of each row. A row carries that of the rows before on
            by the factor that it has for x.
    """
    last = len(levels) - 1
    before = np.eye(last + 2)[0]
    for k, level in enumerate(levels):
        kept = states[k][0] / before[0]
        old, new = np.zeros(MAX_STAGES), scales[k + 1] * (states[k] - kept * before)
        old[: k + 1] = new[k + 1 : 0 : -1]  # the weights of D_k+1, D_k, ...: the latest first
        columns = {
            "x_x": kept * scales[k + 1] / scales[k] + old[2],
            "x_0": old[0],
            "x_m": old[1],
            "x_d": 0.0 - old[2],  # old[2] memory2
            "x_3": old[3],
            "x_n": 0.0 if noise is None else noise[k],
            "m_0": float(k < last),
            "s_m": float(0 < k < last),
            "t_2": float(1 < k < last),
        }
        p_x, p_o = builder.data_prediction(level)
        builder.add("diffusion", level, p_x=p_x, p_o=p_o, **columns)
        before = states[k]


def below_noise(path: Path, level: float) -> float:
    """`level`, or where no data are left that of ratio 9999, 0.9999 on ``flow``.

    Steps in log(sigma / alpha) cannot begin at an infinite ratio. ComfyUI's samplers replace such a
    first level too; the call is made at the level itself.
    """
    return float(path.level(9999.0)) if path.alpha(level) == 0 else level
