"""Learned tables: levels and weights fitted to the exact ODE of many Gaussian mixtures.

In y = x / alpha, s = sigma / alpha, with h the step in log s, h' the one before, D the data
prediction and D1 and D2 those of the steps before, a step is

    y_b = rho y_a + (1 - rho) (D + p h / (2 h') (D - D1) + q (D1 - D2)),
    rho = e^(a - h),

and the last row, of its own rho, makes the sample. p = 1, a = q = 0 is DPM-Solver++(2M) (Lu et
al. 2022); UniPC and the other predictor-correctors with two earlier predictions are such rows
too. The levels and a, p, q and the last rho have been fitted for each number of steps, so that
samples end where the exact ODE ends from the same start; docs/learned_tables.md has the method, the
data and what was measured.

There are two sets of tables. Without `scale`, data may have any norm from .5 to 4, with or without
guidance of weight 1 to 4. With `scale`, the norm of the data is near to it: the levels are those of
data of norm 1 times `scale`, and the error is about half as large.

The tables have levels of their own: `grid` must be left out. `steps` is a bound, as ever: the table
is that of the largest trained number that is not above it. On given levels, such as a list of
sigmas, nothing is learned; the table is that of ``unipc`` and says so by its name.
"""

from __future__ import annotations

import math

import numpy as np

from ..tables import ratio_rows
from ..tables.paths import Path
from ..tables.table import StepTable
from . import _learned, unipc

OWN_LEVELS = True  # where no grid is given, `levels` is None


def table(path, prediction, levels, steps, *, scale=None, denoise_last=True) -> StepTable:
    """At most `steps` calls, one per step."""
    if scale is not None and (isinstance(scale, (str, bool)) or not 0 < scale < math.inf):
        raise ValueError(f"learned: scale must be positive and finite, got {scale!r}")
    if levels is not None:
        return unipc.table(path, prediction, levels, steps, denoise_last=denoise_last)
    tables = _learned.entries("wide" if scale is None else "unit")
    count = max(n for n in tables if n == 1 or n <= steps + (not denoise_last))
    if not denoise_last and count == 1:
        raise ValueError("learned: a step without the last data prediction needs two levels")
    entry = tables[count]
    s = within(np.array(entry["s"]) * (1.0 if scale is None else scale), path)
    rows = _learned.rows(entry, s)
    end = None if denoise_last else path.level(s)
    return ratio_rows.to_table(
        rows if denoise_last else rows[:-1], path, prediction, "learned", end
    )


def within(s: np.ndarray, path: Path) -> np.ndarray:
    """The levels s on `path`: where they go beyond what it covers, their logs are drawn in."""
    low, high = np.log(max(path.ratio_min, 1e-30)), np.log(min(path.ratio_max, 1e30))
    first, last = np.log(s[0]), np.log(s[-1])
    share = (first - np.log(s)) / max(first - last, 1e-30)
    first, last = min(first, high), max(last, low)
    return np.exp(first + share * (last - first)).clip(path.ratio_min, path.ratio_max)
