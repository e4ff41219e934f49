"""Error against calls: the laws of tables of many lengths, and the calls that an accuracy takes.

A method is a solver with a list of settings. For each setting and each number of calls of a ladder
its table's exact law is computed once, along axes of several variances at the same time; what a
target is made of those axes, and how accurate a run must be, is asked later. Between two rungs the
error is taken as a power of the calls.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..solvers import solver
from ..tables.paths import get_path
from .gaussian_law import Law, law_of
from .intervals import Interval
from .text import table

PATH, PREDICTION = "ou", "score"
RATIO_MAX, RATIO_MIN = 200.0, 0.01  # the start errs by 1e-10 nats per axis; samples keep noise .01
# of the data along an axis; 0 is the normal of a manifold
VARIANCES = (1.0, 1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 1024, 0.0)
# A Langevin chain's time is in units of its target's width: tau per step, divided among the steps.
_ULD = [
    {"inner": n, "tau": time / n}
    for n in (1, 2, 3, 4, 6, 8, 12, 16, 24)
    for time in (0.6, 1.0, 1.75, 3.0, 5.0)
]
_DPUM = [
    {"predictor": p, "corrector": c, "tau": time / c}
    for p, c in ((1, 1), (2, 1), (4, 1), (1, 2), (1, 4), (1, 8))
    for time in (0.5, 1.0, 2.0)
]
METHODS: dict[str, list[dict[str, Any]]] = {
    "ddpm": [{}],
    "ddpm-ei": [{}],
    "rtk-uld": [own for own in _ULD if own["tau"] <= 1],
    "dpum": [own for own in _DPUM if own["tau"] <= 1],
    "rtk-harmonic": [{}],
    "ddim": [{}],
    "dpmpp-2m": [{}],
    "unipc": [{}],
}


class Point(NamedTuple):
    """The law of a run.

    Attributes:
        calls: that the table makes.
        law: along the axes of :data:`VARIANCES`, for data of mean 1: the variance does not depend
            on the mean, and the mean is what becomes of it.
    """

    calls: int
    law: Law


@dataclass(frozen=True)
class Curve:
    """A method's setting on a grid, at rising numbers of calls.

    Attributes:
        setting: options of the solver.
        points: in order of their calls.
    """

    setting: dict[str, Any]
    points: tuple[Point, ...]


def target_law() -> Law:
    """The law that an exact sampler has along the axes: of the data at the last level."""
    path = get_path(PATH)
    level = path.level(RATIO_MIN)
    alpha, sigma = float(path.alpha(level)), float(path.sigma(level))
    variance = alpha**2 * np.array(VARIANCES) + sigma**2
    return Law(np.full(len(VARIANCES), alpha), variance)


def rungs(most: int) -> list[int]:
    """Numbers of calls: each from 3 to 12, and two to each factor of 2 from there to `most`."""
    octaves = range(int(math.log2(most / 12) * 2) + 1)
    return sorted({*range(3, 13), *(round(12 * 2 ** (i / 2)) for i in octaves)})


def curves(name: str, grid: str, most: int, settings: Sequence[dict[str, Any]]) -> list[Curve]:
    """A curve of at most `most` calls for each setting of solver `name`."""
    return [Curve(own, tuple(_points(name, grid, most, own))) for own in settings]


def _points(name: str, grid: str, most: int, own: dict[str, Any]) -> Iterator[Point]:
    for steps in rungs(most):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # too few stages for rtk-harmonic's window
            try:
                table = solver(
                    name, path=PATH, prediction=PREDICTION, steps=steps, grid=grid,
                    ratio_max=RATIO_MAX, ratio_min=RATIO_MIN, denoise_last=False, **own,
                )  # fmt: skip
            except ValueError:  # so many inner steps do not fit
                continue
        yield Point(table.calls, law_of(table, np.array(VARIANCES), 1.0))


def calls_to(
    found: Sequence[Curve], error: Callable[[Law], float], bound: float
) -> tuple[float, dict[str, Any]] | None:
    """The fewest calls from which on the error of a setting is at most `bound`, and the setting.

    None where no setting comes to it on its rungs.
    """
    reached = []
    for curve in found:
        calls = [point.calls for point in curve.points]
        errors = [error(point.law) for point in curve.points]
        at = crossing(calls, errors, bound)
        if at is not None:
            reached.append((at, curve.setting))
    return min(reached, key=lambda pair: pair[0], default=None)


def crossing(calls: Sequence[float], errors: Sequence[float], bound: float) -> float | None:
    """Where `errors`, a power of `calls` between neighbours, come to `bound` to stay below it."""
    above = [i for i, error in enumerate(errors) if not error <= bound]
    if not above or above[-1] == len(errors) - 1:  # met before the first rung, or not by the last
        return float(calls[0]) if errors and not above else None
    low, high = above[-1], above[-1] + 1
    if not np.isfinite(errors[low]):
        return float(calls[high])
    x, y = np.log([calls[low], calls[high]]), np.log([errors[low], max(errors[high], 1e-300)])
    return float(np.exp(x[0] + (math.log(bound) - y[0]) * (x[1] - x[0]) / (y[1] - y[0])))


class Fit(NamedTuple):
    """calls = c x^exponent.

    Attributes:
        exponent: by least squares of logarithms.
        low, high: the 2.5th and 97.5th percentile of 1,000 bootstrap samples of the points. The
            laws are exact, so that they show how far a curve is from a power, not chance.
        points: how many there are.
    """

    exponent: float
    low: float
    high: float
    points: int


def power_law(x: Sequence[float], y: Sequence[float | None], seed: int = 0) -> Fit | None:
    """The exponent of y in x over the points where y is known; None with fewer than three."""
    known = [(math.log(a), math.log(b)) for a, b in zip(x, y, strict=True) if b]
    if len(known) < 3:
        return None
    u, v = np.array(known).T
    rng, slopes = np.random.default_rng(seed), []
    while len(slopes) < 1000:
        chosen = rng.integers(len(u), size=len(u))
        if np.ptp(u[chosen]) > 0:
            slopes.append(np.polyfit(u[chosen], v[chosen], 1)[0])
    low, high = np.percentile(slopes, (2.5, 97.5))
    return Fit(float(np.polyfit(u, v, 1)[0]), float(low), float(high), len(u))


def fitted(x: Sequence[float], calls: Sequence[float | None], seed: int) -> dict[str, Any]:
    """`x`, `calls` and the `fit` of their power law, as plain data."""
    fit = power_law(x, calls, seed)
    return {"x": list(x), "calls": list(calls), "fit": None if fit is None else fit._asdict()}


def calls_cell(calls: float | None) -> str:
    """The calls to an accuracy; "more" where those that were tried do not come to it."""
    return "more" if calls is None else f"{calls:.0f}"


def exponent(fit: dict[str, Any] | None) -> str:
    """The exponent of a fit with its interval; empty where there is none."""
    if fit is None:
        return ""
    return str(Interval(fit["exponent"], fit["low"], fit["high"]))


def growth_table(name: str, solvers: dict[str, Any], claims: dict[str, dict[str, float]]) -> str:
    """Lines of `x`, `calls` and `fit` of each solver in Markdown: the calls at each x, the exponent
    with its interval, the sources' exponent."""
    x = next(iter(solvers.values()))["x"]
    lines = []
    for method, row in solvers.items():
        claim = claims.get(method, {}).get(name)
        told = "" if claim is None else f"{claim:g}".replace("0.", ".")
        lines.append([f"`{method}`", *map(calls_cell, row["calls"]), exponent(row["fit"]), told])
    head = [f"calls at {name} =", *(f"{value:g}" for value in x), "exponent", "claim"]
    return table(head, lines)
