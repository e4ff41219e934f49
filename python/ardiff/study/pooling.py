"""Figures of a study's rows: pooled over targets, paired over seeds, and who is not beaten."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from .intervals import Interval, geometric_mean, logarithm, ratio_interval
from .mixture import Row

Floors = dict[tuple[str, str], dict[str, float]]  # of each (target, score), by metric


class Case(NamedTuple):
    """A method beside the best other one: `ratio` of their errors, the lower end of its 95%
    interval over seeds, and the ratio to that error or the floor, whichever is larger."""

    target: str
    score: str
    budget: int
    best: str
    ratio: float
    low: float
    to_floor: float


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
        self,
        score: str,
        method: str,
        rival: str,
        budget: int,
        metric: str,
        targets: Sequence[str] | None = None,
    ) -> Interval | None:
        """Of a method to a rival: for each seed the geometric mean over the targets, by default
        all, and their interval over the seeds; None where one needs more calls."""
        ours, theirs = (self.values(score, each, budget, metric) for each in (method, rival))
        by_seed = defaultdict(list)
        for key in sorted(ours.keys() & theirs.keys()):
            if targets is None or key[0] in targets:
                by_seed[key[1]].append(logarithm(ours[key]) - logarithm(theirs[key]))
        means = [np.mean(each) for each in by_seed.values()]
        return ratio_interval(means) if means else None

    def cases(self, method: str, metric: str) -> list[Case]:
        """A method beside the best of all others on every target, score and budget, and pooled over
        the targets (`target` ``all``), where it was run."""
        found = [
            self._case(target, score, budget, method, metric)
            for score in self.scores
            for budget in self.budgets
            for target in (*self.targets(score), "all")
        ]
        return [case for case in found if case is not None]

    def _case(self, target: str, score: str, budget: int, method: str, metric: str) -> Case | None:
        errors = {
            name: self._pooled_over(target, score, name, budget, metric) for name in self.methods
        }
        errors = {name: each for name, each in errors.items() if math.isfinite(each)}
        mine = errors.pop(method, None)
        if mine is None or not errors:
            return None
        best = min(errors, key=errors.get)
        only = None if target == "all" else [target]
        ratio = self.ratio(score, method, best, budget, metric, only)
        floor = 1.0 if target == "all" else self.floors[target, score].get(metric, 0.0)
        to_floor = mine / max(errors[best], floor)
        return Case(target, score, budget, best, mine / errors[best], ratio.low, to_floor)

    def _pooled_over(self, target: str, score: str, method: str, budget: int, metric: str) -> float:
        if target == "all":
            return self.pooled(score, method, budget, metric)
        return self.of_target(target, score, method, budget, metric)

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
