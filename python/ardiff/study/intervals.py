"""Means over few seeds, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from .text import figure

# Student's t: the 97.5% quantile for 1, 2, .. degrees of freedom. Beyond, the last is used, which
# is too wide.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


class Interval(NamedTuple):
    """A mean and its 95% interval, which is infinite where there is one value."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Such as ``.94 (.90 to .98)``; the mean alone where there is no interval."""
        if not math.isfinite(self.high):
            return figure(self.value)
        return f"{figure(self.value)} ({figure(self.low)} to {figure(self.high)})"


def interval(values: Sequence[float]) -> Interval:
    """Of the mean of one value for each seed, by Student's t."""
    values = np.asarray(values, np.float64)
    mean = float(values.mean())
    if len(values) < 2 or not math.isfinite(mean):
        return Interval(mean, -math.inf, math.inf)
    quantile = STUDENT[min(len(values) - 1, len(STUDENT)) - 1]
    half = quantile * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def ratio_interval(logs: Sequence[float]) -> Interval:
    """Of a geometric mean, from the logarithms; its lower end is 0 where there is one value."""
    with np.errstate(over="ignore"):
        return Interval(*(float(np.exp(each)) for each in interval(logs)))


def logarithm(value: float) -> float:
    """Of a distance, which is not below 1e-12."""
    return math.log(max(value, 1e-12))


def geometric_mean(values: Iterable[float]) -> float:
    """Infinite where a value is; of nothing NaN."""
    values = list(values)
    if not values:
        return math.nan
    if not all(map(math.isfinite, values)):
        return math.inf
    return math.exp(sum(map(logarithm, values)) / len(values))
