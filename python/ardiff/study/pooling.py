"""Figures of a study's rows: pooled over targets, paired over seeds, and who is not beaten."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from .mixture import Row

# Student's t: the 97.5 % quantile for 1, 2, .. degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)

Floors = dict[tuple[str, str], dict[str, float]]  # of each (target, score), by metric


class Interval(NamedTuple):
    """A geometric mean and its 95 % interval over seeds; infinite where there is one seed."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        low, high = (f"{each:.2f}".lstrip("0") for each in (self.low, self.high))
        return f"{self.value:.2f}".lstrip("0") + f" ({low} to {high})"


def geometric_mean(values: Iterable[float]) -> float:
    """Infinite where a value is; of nothing NaN."""
    values = list(values)
    if not values:
        return math.nan
    if not all(map(math.isfinite, values)):
        return math.inf
    return math.exp(sum(math.log(max(value, 1e-12)) for value in values) / len(values))


def interval(logs: Sequence[float]) -> Interval:
    """Of the means of logarithms that each seed gave, by Student's t."""
    logs = np.asarray(logs)
    mean = float(logs.mean())
    if len(logs) < 2 or not math.isfinite(mean):
        return Interval(math.exp(mean), 0.0, math.inf)
    half = _T[min(len(logs) - 1, len(_T)) - 1] * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


class Results:
    """The rows of a study by score, method and budget.

    Args:
        rows: of any targets, scores and seeds; every method and budget at the same seeds.
        floors: what exact draws have.
    """

    def __init__(self, rows: Iterable[Row], floors: Floors) -> None:
        self.floors = floors
        self._rows: dict[tuple[str, str, int], dict[tuple[str, int], Row]] = defaultdict(dict)
        for row in rows:
            self._rows[row.score, row.method, row.budget][row.target, row.seed] = row
        self.scores = list(dict.fromkeys(score for score, *_ in self._rows))
        self.methods = sorted({method for _, method, _ in self._rows})
        self.budgets = sorted({budget for *_, budget in self._rows})

    def targets(self, score: str) -> list[str]:
        """The targets that were run with a score."""
        return [target for target, each in self.floors if each == score]

    def values(self, score: str, method: str, budget: int, metric: str) -> dict:
        """By (target, seed); nothing where the method needs more calls."""
        rows = self._rows.get((score, method, budget), {})
        return {key: row.metrics[metric] for key, row in rows.items() if metric in row.metrics}

    def pooled(self, score: str, method: str, budget: int, metric: str) -> float:
        """Geometric mean over targets and seeds of the metric in units of its floor; of the strong
        error, whose floor is 0, of itself. NaN where the method needs more calls."""
        values = self.values(score, method, budget, metric)
        if {target for target, _ in values} != set(self.targets(score)):
            return math.nan
        return geometric_mean(
            value / self.floors[target, score].get(metric, 1.0)
            for (target, _), value in values.items()
        )

    def of_target(self, target: str, score: str, method: str, budget: int, metric: str) -> float:
        """Geometric mean over seeds; NaN where the method needs more calls."""
        values = self.values(score, method, budget, metric)
        return geometric_mean(value for (each, _), value in values.items() if each == target)

    def ratio(
        self, score: str, method: str, rival: str, budget: int, metric: str, only: str = ""
    ) -> Interval | None:
        """Of a method to a rival: for each seed the geometric mean over the targets whose names
        begin with `only`, and their interval over the seeds; None where one needs more calls."""
        ours, theirs = (self.values(score, each, budget, metric) for each in (method, rival))
        by_seed = defaultdict(list)
        for key in sorted(ours.keys() & theirs.keys()):
            if key[0].startswith(only):
                by_seed[key[1]].append(math.log(ours[key] / theirs[key]))
        return interval([np.mean(each) for each in by_seed.values()]) if by_seed else None

    def front(self, score: str, metric: str) -> list[tuple[int, str, float]]:
        """The Pareto front: (calls, method, pooled), of each budget the best, as long as it is
        below those of fewer calls."""
        found: list[tuple[int, str, float]] = []
        for budget in self.budgets:
            pooled = {name: self.pooled(score, name, budget, metric) for name in self.methods}
            known = {name: value for name, value in pooled.items() if math.isfinite(value)}
            if known:
                best = min(known, key=known.get)
                if not found or known[best] < found[-1][2]:
                    found.append((budget, best, known[best]))
        return found
