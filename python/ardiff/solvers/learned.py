"""Learned tables: levels and weights fitted to the exact ODE of many Gaussian mixtures.

In y = x / alpha, s = sigma / alpha, with h the step in log s, h' the one before, D the data
prediction and D1, D2, D3 those of the steps before, a step is

    y_b = rho y_a + (1 - rho) (D + p h / (2 h') (D - D1) + q (D1 - D2) + r (D2 - D3)),
    rho = e^(a - h),

and the last row, of its own rho, makes the sample. p = 1, a = q = r = 0 is DPM-Solver++(2M) (Lu et
al. 2022); UniPC-2 and the other predictor-correctors with two earlier predictions are such rows
too. The levels and a, p, q, r and the last rho have been fitted for each number of steps, so that
samples end where the exact ODE ends from the same start; docs/learned_tables.md has the method, the
data and what was measured. r is not 0 above 16 steps alone.

There are two sets of tables. Without `scale`, data may have any norm from .5 to 4, with or without
guidance. Where `scale` is given, the norm of the data is near to it, and the levels are those of
data of norm 1 times `scale`.

The levels are the solver's own where `grid` is not given. On a given grid, and at a number of steps
that was not trained, the parameters of the nearest number of steps are read at the given levels.
"""

from __future__ import annotations

import math

import numpy as np

from ..tables import ratio_rows
from ..tables.paths import Path
from ..tables.table import StepTable
from . import _learned

_INFINITE = 1e12  # stands for sigma / alpha where alpha is 0


def _set_of(scale: float | None) -> tuple[dict, float]:
    if scale is None:
        return _learned.entries("wide"), 1.0
    if isinstance(scale, (str, bool)) or not 0 < scale < math.inf:
        raise ValueError(f"learned: scale must be positive and finite, got {scale!r}")
    return _learned.entries("unit"), float(scale)


def own_levels(path: Path, count: int, scale: float | None = None) -> np.ndarray:
    """The `count` levels of a learned table, noisiest first; those that the path does not cover are
    drawn in, the ends to its own."""
    tables, unit = _set_of(scale)
    found = np.log(unit * _learned.ratios(_learned.nearest(tables, count), count))
    low, high = np.log([max(path.ratio_min, 1e-30), min(path.ratio_max, 1e30)])
    if found[0] > high:
        found = found[-1] + (found - found[-1]) * (high - found[-1]) / (found[0] - found[-1])
    if found[-1] < low:
        found = found[0] + (found - found[0]) * (low - found[0]) / (found[-1] - found[0])
    return path.level(np.clip(np.exp(found), path.ratio_min, path.ratio_max))


def table(path, prediction, levels, steps, *, scale=None, denoise_last=True) -> StepTable:
    """`steps` calls, one per step."""
    tables, unit = _set_of(scale)
    grid = levels(steps if denoise_last else steps + 1)
    ratio = np.minimum(path.ratio(grid), _INFINITE)
    if not np.all(np.diff(ratio) < 0):
        raise ValueError("learned: every step must go to a cleaner level")
    if ratio[-1] <= 0:
        raise ValueError("learned: the last level must have noise; denoise_last makes the sample")
    rows = _learned.rows(_learned.nearest(tables, len(grid)), ratio / unit)
    rows[:, 0] = ratio
    rows = rows if denoise_last else rows[:-1]
    return ratio_rows.to_table(rows, path, prediction, "learned", grid)
