"""`search_table`: a table with noise, found by what its samples are worth.

:func:`ardiff.training.learn_table.learn_table` fits a table to the exact ODE of the model. Where
the model is imperfect that is the wrong aim: noise corrects in later steps what the model did wrong
in earlier ones, and samples that follow the model's ODE faithfully are not the best ones. Here any
figure of samples is the aim, such as an image metric, and the tables are those of

    x_b = sigma_b / sigma_a e^(-eta h) x_a
          + alpha_b (1 - e^(-(1 + eta) h)) (x0 + p h / (2 h') (x0 - x0'))
          + sigma_b sqrt(1 - e^(-2 eta h)) xi,

SDE-DPM-Solver++(2M) with a share p of its second-order term: h is the step in log(alpha / sigma),
h' the one before, x0 and x0' the data predictions at a and before it. eta and p go linearly from
the first step to the last, and levels are uniform in (sigma / alpha)^(1 / rho) between two ends:
seven numbers. `ddim` (eta 0, p 0), `ddpm` (1, 0), `dpmpp-2m` (0, 1) and `dpmpp-2m-sde` (1, 1) on
any `karras` grid are among them, and the best of these is the start.

The search is an evolution strategy with recombination of the best (Hansen & Ostermeier 2001,
without adaptation of the covariance): all candidates of a generation draw samples of the same seed,
so that noise which is common to them does not decide.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import NamedTuple

import numpy as np

from ..solvers import dpmpp_2m_sde
from ..tables.paths import Path, check_prediction, get_path, time_grid, transition
from ..tables.table import StepTable, TableBuilder

Judge = Callable[[StepTable, int], float]
STARTS = {
    "ddim": (0.0, 0.0),
    "ddpm": (1.0, 0.0),
    "dpmpp-2m": (0.0, 1.0),
    "dpmpp-2m-sde": (1.0, 1.0),
}
GRIDS = ((40.0, 0.002, 7.0), (40.0, 0.02, 7.0), (40.0, 0.02, 3.0))
CANDIDATES, KEPT = 10, 3
_SHRINK, _PULL = 0.93, 0.7  # of the spread in a generation, and of the mean towards the best
FIRST_SEED = 2**40  # of the search, far from the seeds that samples are drawn with
MARGIN = 2.0  # standard errors by which a gain must differ from 0


class Choice(NamedTuple):
    """The seven numbers of a table, as its module says; ends and rho are logarithms."""

    high: float
    low: float
    rho: float
    eta_first: float
    eta_last: float
    p_first: float
    p_last: float


SPREAD = Choice(0.3, 0.4, 0.3, 0.3, 0.3, 0.4, 0.4)


def choice_table(choice: Choice, path: str | Path, prediction: str, steps: int) -> StepTable:
    """The table of `choice` with `steps` calls.

    Raises:
        ValueError: ends that leave no grid on the path.
    """
    path = get_path(path)
    grid = time_grid(
        path, steps, "karras", ratio_max=math.exp(choice.high), ratio_min=math.exp(choice.low),
        rho=math.exp(choice.rho),
    )  # fmt: skip
    builder, previous = TableBuilder(path, prediction, "searched"), None
    for i, (a, b) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
        at = i / max(steps - 2, 1)
        eta = max(choice.eta_first + at * (choice.eta_last - choice.eta_first), 0.0)
        p = choice.p_first + at * (choice.p_last - choice.p_first)
        here = transition(path, a, b)
        columns = dpmpp_2m_sde.step(here, previous, eta)
        columns["x_0"] += (1 - p) * columns["x_m"]
        columns["x_m"] *= p
        p_x, p_o = builder.data_prediction(a)
        builder.add("diffusion", a, p_x=p_x, p_o=p_o, **columns)
        previous = here
    return builder.finish(grid[-1])


@dataclass(frozen=True)
class SearchedTable:
    """What :func:`search_table` found.

    Attributes:
        table: the table, searched or the start.
        learned: whether it is better than the start on held-out seeds; else `table` is that.
        choice: its seven numbers.
        start: the standard table that the search began from, solver and grid.
        judged: of held-out seeds, the judge of the table found and of the start, `[seeds, 2]`.
        others: the judge of every standard table, on one seed of the search.
        tables, seconds: how many were judged, and the time taken.
    """

    table: StepTable
    learned: bool
    choice: Choice
    start: str
    judged: np.ndarray = field(repr=False)
    others: dict[str, float] = field(repr=False)
    tables: int
    seconds: float

    @property
    def gain(self) -> tuple[float, float]:
        """Mean over held-out seeds of the start's judge less that of the table found, and its
        standard error."""
        return _gain(self.judged)

    def __str__(self) -> str:
        """The table and the gain, a line each for the standard tables."""
        mean, error = self.gain
        found = "found" if self.learned else "no gain was found, so the start is returned"
        lines = [
            f"{len(self.table)} steps, {found}: {mean:.4g} +- {error:.2g} less than the start on "
            f"{len(self.judged)} held-out seeds; {self.tables} tables judged, {self.seconds:.0f} s",
            f"start: {self.start}",
            *(f"{value:10.5g} {name}" for name, value in sorted(self.others.items(), key=_second)),
            f"ratios {math.exp(self.choice.high):.4g} to {math.exp(self.choice.low):.4g}, "
            f"rho {math.exp(self.choice.rho):.4g}, "
            f"eta {self.choice.eta_first:.3g} to {self.choice.eta_last:.3g}, "
            f"p {self.choice.p_first:.3g} to {self.choice.p_last:.3g}",
        ]  # fmt: skip
        return "\n".join(lines)

    def save(self, path: str | FilePath) -> None:
        """Writes the table as a file that :meth:`StepTable.load` reads."""
        self.table.save(path)


def _second(entry: tuple[str, float]) -> float:
    return entry[1]


def _gain(judged: np.ndarray) -> tuple[float, float]:
    less = judged[:, 1] - judged[:, 0]
    return float(less.mean()), float(less.std(ddof=1) / math.sqrt(len(less)))


def search_table(
    judge: Judge,
    *,
    path: str | Path,
    prediction: str,
    steps: int = 8,
    grids: Sequence[tuple[float, float, float]] = GRIDS,
    seconds: float = 240.0,
    generations: int = 40,
    held_out: int = 8,
    seed: int = 0,
    progress: Callable[[int, int, float], None] | None = None,
) -> SearchedTable:
    """The table of `steps` calls whose samples `judge` finds best.

    Args:
        judge: ``judge(table, seed) -> float``, less is better: draws samples with that table and
            that seed, and gives a figure of them. Its noise should be less than what is to be won:
            let it draw a thousand samples or more.
        path, prediction: as of :func:`ardiff.solver`.
        steps: model calls of the table, 3 or more.
        grids: (ratio_max, ratio_min, rho) of the grids on which the standard tables are tried.
        seconds, generations: the budget of the search, whichever ends first; the last judging, of
            two tables on `held_out` seeds, comes after it.
        held_out: seeds that the search does not use, on which the table found must be better than
            the start by two standard errors; else the start is returned.
        seed: of the search.
        progress: called with generations done, generations in all, and the best judge of the last.

    Raises:
        ValueError: a number out of range, before anything is judged; a judge of every standard
            table that is not finite.
        TypeError: a judge that is not callable, or that gives no number.

    Example:
        Noise that a judge of spread asks for:

        >>> import ardiff
        >>> from ardiff.training.search_table import search_table
        >>> def judge(table, seed):
        ...     x = ardiff.sample(lambda x, level, _: 0.5 * x, (256, 1), table=table, seed=seed)
        ...     return abs(float(x.std()) - 0.7)
        >>> found = search_table(
        ...     judge, path="edm", prediction="sample", steps=4, generations=2, held_out=2
        ... )
        >>> len(found.table), found.start in found.others
        (4, True)
    """
    began, path = time.monotonic(), get_path(path)
    _check(judge, steps, seconds, generations, held_out)
    check_prediction(prediction)
    rng, judged_tables = np.random.default_rng(seed), 0

    def worth(choice: Choice, at: int) -> float:
        nonlocal judged_tables
        try:
            table = choice_table(choice, path, prediction, steps)
        except ValueError:  # the ends have crossed
            return math.inf
        judged_tables += 1
        value = judge(table, at)
        if not isinstance(value, (int, float, np.floating)):
            raise TypeError(f"judge must return a number, got {type(value).__name__}")
        return float(value) if math.isfinite(value) else math.inf

    begin = FIRST_SEED + 10_000 * seed
    starts = {
        f"{name}, {high:g} to {low:g}, rho {rho:g}": Choice(
            math.log(min(high, path.ratio_max)), math.log(max(low, path.ratio_min, 1e-6)),
            math.log(rho), eta, eta, p, p,
        )
        for name, (eta, p) in STARTS.items()
        for high, low, rho in grids
    }  # fmt: skip
    others = {name: worth(choice, begin) for name, choice in starts.items()}
    start = min(others, key=others.get)
    if not math.isfinite(others[start]):
        raise ValueError("the judge of every standard table is NaN or infinite")
    mean, spread = np.array(starts[start]), np.array(SPREAD)
    for generation in range(generations):
        if time.monotonic() - began > seconds:
            break
        tried = [mean + spread * rng.standard_normal(len(mean)) for _ in range(CANDIDATES)]
        values = [worth(Choice(*c), begin + 1 + generation) for c in tried]
        best = np.argsort(values)[:KEPT]
        if math.isfinite(values[best[-1]]):
            mean = mean + _PULL * (np.mean([tried[i] for i in best], 0) - mean)
        spread = spread * _SHRINK
        if progress is not None:
            progress(generation + 1, generations, values[best[0]])
    found = Choice(*mean.tolist())
    seeds = range(begin + 5_000, begin + 5_000 + held_out)
    judged = np.array([[worth(found, at), worth(starts[start], at)] for at in seeds])
    gain, error = _gain(judged)
    learned = bool(gain > MARGIN * error)
    choice = found if learned else starts[start]
    return SearchedTable(
        choice_table(choice, path, prediction, steps), learned, choice, start, judged, others,
        judged_tables, time.monotonic() - began,
    )  # fmt: skip


def _check(judge: Judge, steps: int, seconds: float, generations: int, held_out: int) -> None:
    if not callable(judge):
        raise TypeError(
            f"search_table: judge must be callable, judge(table, seed), got {type(judge).__name__}"
        )
    least = {"steps": (steps, 3), "generations": (generations, 1), "held_out": (held_out, 2)}
    for name, (value, low) in least.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError(f"search_table: {name} must be an integer >= {low}, got {value!r}")
    if not seconds > 0:
        raise ValueError(f"search_table: seconds must be positive, got {seconds!r}")
