"""Learned tables against the best standard solvers: exact models, equal calls, held-out mixtures.

The mixtures are `random_mixture`, seeds 101 to 109 and 201 to 209, which no table has seen, with
centres of norm 1, or `norm` times that. Of each case two distances are taken, pooled over mixtures
and the seeds of the noise by the geometric mean:

- ``sliced_w2`` of the samples to the mixture, as in :mod:`benchmarks.bench_quality`,
- ``end_point``: of each sample to where the exact probability-flow ODE leads from the same start,
  the root of the mean of e^2 / (1 + e^2 / (.05 norm^2)), in units of the norm: a sample that went
  to another mode counts no more than .22. The exact end is that of 200 steps of `dpmpp-3m`.

A guided case follows u + w (c - u), u the mixture and c the first half of its components; it has an
end point alone. Each rival is the best, by the distance in question, of three grids: log-SNR from
40 to a tenth of the smallest standard deviation of a component, log-SNR from 40 to .02 norm, and
`karras` between the ends of the first. Our table is run twice: as it is shipped, and told the norm
as its option `scale`, in the rows of rival `scale` and the ratios `_told`. Rows of rival `truth`
are exact draws: the floor.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import ardiff
from ardiff.data.mixture import GaussianMixture, random_mixture
from ardiff.study import problems
from ardiff.study.intervals import geometric_mean
from ardiff.study.problems import PATH, PREDICTION, end_error, exact_table, grids
from ardiff.tables.table import StepTable

from ._harness import CORRECTNESS, OURS, Row, Settings
from .bench_quality import Target

SUITE = "learned"
MIXTURES = (*range(101, 110), *range(201, 210))
NOISE_SEEDS = (0, 1, 2, 3)
SAMPLES, STARTS = 8000, 500
TOLD = "scale"  # the learned table that is told the norm
# Solver and options of each rival.
RIVALS = {
    "dpmpp-2m": ("dpmpp-2m", {}),
    "dpmpp-3m": ("dpmpp-3m", {}),
    "unipc-2": ("unipc", {"order": 2}),
    "unipc-3": ("unipc", {"order": 3}),
    "deis-3": ("deis", {"order": 3}),
    "ipndm": ("ipndm", {}),
    "sa-p3c3": ("sa", {"predictor_order": 3, "corrector_order": 3, "tau": 0.0}),
}
CASES = (
    *(f"calls={calls}/norm=1/guidance=1" for calls in (5, 8, 16, 32)),
    *(f"calls=8/norm={norm:g}/guidance=1" for norm in (0.5, 2, 4)),
    "calls=8/norm=1/guidance=3",
)


class Problem(NamedTuple):
    """A mixture, its model, and the class that guidance asks for."""

    target: Target
    mixture: GaussianMixture
    norm: float
    model: Callable[[Tensor, Tensor, Any], Tensor]
    guidance: float

    @property
    def smallest(self) -> float:
        """Standard deviation of the narrowest component."""
        return float(self.mixture.variances.min().sqrt())


@functools.cache
def problem(seed: int, norm: float, guidance: float) -> Problem:
    """The mixture of `seed`, its lengths times `norm`."""
    unit = random_mixture(seed)
    whole = GaussianMixture(unit.means * norm, unit.variances * norm**2, unit.weights.float())
    half = len(whole.means) // 2
    part = GaussianMixture(whole.means[:half], whole.variances[:half], whole.weights[:half].float())
    models = [mixture.model(PATH, PREDICTION) for mixture in (whole, part)]

    def model(x: Tensor, level: Tensor, condition: Any) -> Tensor:
        return models[condition == "half"](x, level)

    return Problem(Target(whole, seed, SAMPLES), whole, norm, model, guidance)


def draw(p: Problem, table: StepTable, seed: int, count: int) -> Tensor:
    """Samples 0 to `count` - 1 of a seed, `[count, d]`."""
    guided = {}
    if p.guidance != 1:
        guided = {"condition": "half", "uncond": "all", "guidance": torch.tensor([p.guidance])}
    return problems.draw(p.model, table, p.mixture.means.shape[1], seed, count, guided)


@functools.cache
def exact_end(seed: int, norm: float, guidance: float, noise: int, start: float) -> Tensor:
    """Where the exact ODE leads from ratio `start`, `[STARTS, d]`."""
    p = problem(seed, norm, guidance)
    return draw(p, exact_table(p.smallest, start), noise, STARTS)


Score = dict[str, list[float]]  # by metric: a value for each mixture and seed


def score(seeds: Sequence[int], norm: float, guidance: float, make: Callable) -> Score:
    """The distances of `make(problem) -> table`."""
    found: Score = {"end_point": []} if guidance != 1 else {"end_point": [], "sliced_w2": []}
    for seed in seeds:
        p = problem(seed, norm, guidance)
        table = make(p)
        for noise in NOISE_SEEDS:
            x = draw(p, table, noise, SAMPLES if guidance == 1 else STARTS)
            exact = exact_end(seed, norm, guidance, noise, float(table.level[0]))
            found["end_point"].append(end_error(x[:STARTS], exact, norm))
            if guidance == 1:
                found["sliced_w2"].append(p.target.distance(x))
    return found


def rivals(calls: int, norm: float, guidance: float) -> dict[str, dict[str, Score]]:
    """The scores of each rival on each grid."""

    def of(name: str, grid: str) -> Score:
        solver, options = RIVALS[name]

        def make(p: Problem) -> StepTable:
            place = {"path": PATH, "prediction": PREDICTION, "steps": calls}
            return ardiff.solver(solver, **place, **grids(p.smallest, p.norm)[grid], **options)

        return score(MIXTURES, norm, guidance, make)

    names = grids(1.0, 1.0)
    return {name: {grid: of(name, grid) for grid in names} for name in RIVALS}


def learned(calls: int, norm: float, guidance: float, told: bool) -> Score:
    """The scores of the shipped table, told the norm as its `scale` or not."""
    scale = norm if told else None
    table = ardiff.solver("learned", path=PATH, prediction=PREDICTION, steps=calls, scale=scale)
    return score(MIXTURES, norm, guidance, lambda p: table)


def parse(case: str) -> tuple[int, float, float]:
    """Calls, norm and guidance of `calls=<n>/norm=<x>/guidance=<w>`.

    Raises:
        ValueError: a name of another form.
    """
    parts = [part.partition("=") for part in case.split("/")]
    try:
        if [name for name, *_ in parts] != ["calls", "norm", "guidance"]:
            raise ValueError
        return int(parts[0][2]), float(parts[1][2]), float(parts[2][2])
    except ValueError:
        expected = f"expected calls=<n>/norm=<x>/guidance=<w>, such as {CASES[0]}"
        raise ValueError(f"case {case!r}: {expected}") from None


def run(case: str, settings: Settings) -> Iterator[Row]:
    """Whether the exact ends are exact, then the distances and the ratios to each rival."""
    calls, norm, guidance = parse(case)
    first = problem(MIXTURES[0], norm, guidance)
    fine = ardiff.solver(
        "dpmpp-2m", path=PATH, prediction=PREDICTION, steps=6 * problems.EXACT_CALLS,
        ratio_min=first.smallest / 50,
    )  # fmt: skip
    exact = exact_end(MIXTURES[0], norm, guidance, 0, 40.0)
    doubt = end_error(draw(first, fine, 0, STARTS), exact, norm)
    yield Row(SUITE, case, "exact", CORRECTNESS, doubt / 1e-3)
    ours = {name: learned(calls, norm, guidance, name == TOLD) for name in (OURS, TOLD)}
    theirs = rivals(calls, norm, guidance)
    if guidance == 1:
        floors = [problem(seed, norm, guidance).target.floor for seed in MIXTURES]
        yield Row(SUITE, case, "truth", "sliced_w2", geometric_mean(floors))
    for metric in ours[OURS]:
        for name, scores in ours.items():
            values = scores[metric]
            yield Row(
                SUITE, case, name, metric, geometric_mean(values), "", min(values), max(values)
            )
        for name, by_grid in theirs.items():
            best = min(
                by_grid, key=lambda grid, by_grid=by_grid: geometric_mean(by_grid[grid][metric])
            )
            rival = by_grid[best][metric]
            yield Row(SUITE, case, name, metric, geometric_mean(rival), "", min(rival), max(rival))
            for mine, suffix in ((OURS, ""), (TOLD, "_told")):
                pairs = zip(ours[mine][metric], rival, strict=True)
                each = [a / b for a, b in pairs]
                ratio = f"{metric}_ratio{suffix}"
                yield Row(SUITE, case, name, ratio, geometric_mean(each), "x", min(each), max(each))
