"""Solvers at equal calls on mixtures: every solver, on its best grid, over several seeds."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..planning.recommend import recommend
from ..solvers import SOLVERS
from ..tables.table import StepTable
from .problems import Problem, grids, make_problem

GRIDS_TRIED_UP_TO = 16  # calls; above, log-SNR alone
STRONG = 500  # samples that are compared with their exact ends
# Options under which a solver is another method; all others run with their defaults.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "unipc-3": ("unipc", {"order": 3}),
    "rtk-harmonic-mala/simpson": ("rtk-harmonic-mala", {"accept": "simpson"}),
}
SOLVED = {**{name: (name, {}) for name in SOLVERS}, **VARIANTS}
PLAN = "plan"  # what `ardiff plan` recommends for a problem and a budget
METHODS = (*SOLVED, PLAN)
KINDS = {"exact": "exact", "perturbed": "learned", "learned": "learned", "guided": "guided"}


@dataclass(frozen=True)
class Row:
    """One run: its place, the calls made, and the metrics of its samples."""

    target: str
    score: str
    method: str
    budget: int
    calls: int
    grid: str
    seed: int
    metrics: dict[str, float]


def rows_of(
    problem: Problem,
    method: str,
    budget: int,
    seeds: Sequence[int],
    tried: Sequence[str] | None = None,
) -> Iterator[Row]:
    """The runs of a method on the grid that is best with the first seed by sliced W2; none where
    it needs more calls."""
    tables = {}
    for key, (name, options) in _choices(problem, method, budget, tried).items():
        with warnings.catch_warnings():  # of a window between the levels
            warnings.simplefilter("ignore", UserWarning)
            try:
                tables[key] = problem.table(name, budget, **options)
            except ValueError:  # too few calls
                return
    drawn = {key: problem.draw(table, seeds[0]) for key, table in tables.items()}
    best = min(drawn, key=lambda key: problem.judge.sliced_w2(drawn[key]))
    yield _row(problem, method, budget, best, tables[best], seeds[0], drawn[best])
    for seed in seeds[1:]:
        x = problem.draw(tables[best], seed)
        yield _row(problem, method, budget, best, tables[best], seed, x)


def _choices(
    problem: Problem, method: str, budget: int, tried: Sequence[str] | None
) -> dict[str, tuple[str, dict[str, Any]]]:
    """By the name of their grid, the solvers and options among which a method is the best."""
    if method == PLAN:
        found = recommend(
            budget, score=KINDS[problem.score], dim=problem.d, scale=problem.norm,
            smallest=problem.smallest,
        )  # fmt: skip
        return {found.solver: (found.solver, found.options)}
    name, options = SOLVED[method]
    if name == "learned":
        return {"its own": (name, options)}
    own = grids(problem.smallest, problem.norm)
    if tried is None:
        tried = tuple(own) if budget <= GRIDS_TRIED_UP_TO else ("log-snr",)
    return {key: (name, {**own[key], **options}) for key in tried}


def _row(
    problem: Problem, method: str, budget: int, grid: str, table: StepTable, seed: int, x: Tensor
) -> Row:
    metrics = problem.judge(x)
    if not table.draws:
        metrics["strong"] = problem.end_error(x, table, seed, min(STRONG, len(x)))
    return Row(problem.target, problem.score, method, budget, table.calls, grid, seed, metrics)


def run_problem(
    target: str,
    score: str,
    *,
    methods: Sequence[str],
    budgets: Sequence[int],
    seeds: Sequence[int],
    samples: int,
    training_steps: int,
    seed: int,
) -> tuple[list[Row], dict[str, float]]:
    """The runs of all methods at all budgets on one target, and the floors of its metrics."""
    problem = make_problem(target, score, samples, seed, training_steps)
    rows = [
        row
        for budget in budgets
        for method in methods
        for row in rows_of(problem, method, budget, seeds)
    ]
    return rows, problem.judge.floor
