"""Heun++ with three calls a step (Carzit, sd-webui-samplers-scheduler), ComfyUI's `sample_heunpp2`.

dy/ds = d = (y - D) / s, with y = x / alpha and s = sigma / alpha, on the path ``flow`` y = x and
s = sigma; D is the data prediction. From s_a two Euler steps, to s_b and on to s_c, the next levels
of the grid, give the slopes d_1, d_2 and d_3; the step to s_b takes their mean by weights that put
the later slopes behind as the noise falls,

    w_2 = s_b / (3 s_0),   w_3 = s_c / (3 s_0),   w_1 = 1 - w_2 - w_3,   s_0 the first level.

The step before the last has no level beyond, and takes w_2 = s_b / (2 s_0), w_1 = 1 - w_2; the last
is Euler's, which is the last data prediction where that ends the table.
"""

from __future__ import annotations

import numpy as np

from ..tables.paths import FlowPath
from ..tables.table import StepTable, TableBuilder
from ._stages import add_stages


def table(path, prediction, levels, steps, *, denoise_last=True) -> StepTable:
    """Three calls for each interval but the last two, which make two and one."""
    intervals = steps // 3 + 1 if steps >= 3 else 1  # of the levels and, to the data, of 0
    grid = levels(intervals if denoise_last else intervals + 1)
    builder = TableBuilder(path, prediction, "heunpp2")
    c = np.ones(len(grid)) if isinstance(path, FlowPath) else path.alpha(grid)
    if not np.all(c > 0):
        raise ValueError("heunpp2 cannot start at alpha = 0, an infinite sigma; start below it")
    s = path.sigma(grid) / c
    for i in range(len(grid) - 1):
        calls = min(3, intervals - i)
        states = heun_states(s[i : i + calls], s[i + 1], s[0])
        add_stages(builder, grid[i : i + calls], [*c[i : i + calls], c[i + 1]], states)
    return builder.finish(grid[-1] if denoise_last else None)


def heun_states(s: np.ndarray, s_b: float, s_0: float) -> list[np.ndarray]:
    """The states after each call at the levels `s`, as weights of y and of the predictions."""
    y, *D = np.eye(len(s) + 1)
    states, slopes = [y], []
    for k in range(len(s)):
        slopes.append((states[k] - D[k]) / s[k])
        if k + 1 < len(s):
            states.append(states[k] + (s[k + 1] - s[k]) * slopes[k])
    weights = s / (len(s) * s_0)
    weights[0] = 1 - weights[1:].sum()
    mean = sum(w * d for w, d in zip(weights, slopes, strict=True))
    return [*states[1:], y + (s_b - s[0]) * mean]
