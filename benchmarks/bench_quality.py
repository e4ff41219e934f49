"""Sample quality for model calls: sliced W2 to random mixtures with the exact score.

Solvers run, if not told otherwise, on the log-SNR grid from sigma / alpha = 40 to a tenth of the
smallest standard deviation of a component, and end in a data prediction. The distance is sliced W2
over 48 fixed directions to quantiles of ten times as many exact draws, pooled as the geometric mean
over nine instances of `random_mixture`, seeds 101 to 109; calls are counted by the model. The row
of rival `truth` is the same distance of exact draws: the floor. A `ratio` row compares a solver
with its rival: those of :data:`BOUNDS`, and every other solver with the default one at 16 calls.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

import ardiff
from ardiff.data.mixture import GaussianMixture, random_mixture
from ardiff.solvers import SOLVERS, default_solver
from ardiff.study.intervals import geometric_mean
from ardiff.study.metrics import Sliced, unit_directions
from ardiff.study.problems import PATH, PREDICTION, TRUTH_DRAWS

from ._harness import CORRECTNESS, Row, Settings

SUITE = "quality"
SEEDS = tuple(range(101, 110))
SAMPLES = 4000
# solver, rival, calls, and the bound on the ratio of their pooled distances
BOUNDS = (
    ("rtk-harmonic", "ddpm", 16, 0.5),
    ("rtk-harmonic", "ddpm", 32, 0.5),
    ("rtk-hybrid", "dpmpp-2m-sde", 8, 0.85),
    ("rtk-hybrid", "dpmpp-2m-sde", 16, 0.80),
    ("rtk-hybrid", "dpmpp-2m", 16, 1.10),
    ("rtk-harmonic-mala", "ddpm", 32, 0.9),
)
_DEFAULT = default_solver(16)
_COMPARED = {
    **{(solver, 16, _DEFAULT): None for solver in SOLVERS if solver != _DEFAULT},
    **{(solver, calls, rival): None for solver, rival, calls, _ in BOUNDS},
}
CASES = tuple(f"{solver}/calls={calls}/{rival}" for solver, calls, rival in _COMPARED)


class Target:
    """A mixture with its directions, exact quantiles, and the floor."""

    def __init__(self, mixture: GaussianMixture, seed: int, samples: int = SAMPLES) -> None:
        self.mixture, self.samples = mixture, samples
        generator = torch.Generator().manual_seed(seed)
        directions = unit_directions(mixture.means.shape[1], generator)
        truth = mixture.sample(samples * TRUTH_DRAWS, generator)
        self._sliced = Sliced(directions, truth, samples)
        self.floor = self.distance(mixture.sample(samples, generator))

    def distance(self, x: Tensor) -> float:
        """Sliced W2 of samples `[samples, d]` to the mixture."""
        return self._sliced.w2(x)

    def draw(self, solver: str, steps: int, seed: int = 0, **options) -> tuple[Tensor, int]:
        """Samples of a solver and its model calls, counted by the model."""
        shape = (self.samples, self.mixture.means.shape[1])
        smallest = float(self.mixture.variances.min().sqrt())
        x, stats = ardiff.sample(
            self.mixture.model(PATH, PREDICTION), shape, PATH, PREDICTION, solver, steps,
            seed=seed, ratio_min=smallest / 10, return_stats=True, **options,
        )  # fmt: skip
        return x, stats.calls


_TARGETS: dict[int, Target] = {}
_FOUND: dict[tuple[str, int, int, str | None], tuple[list[float], int]] = {}


def targets() -> list[Target]:
    """The nine instances, made once."""
    for seed in SEEDS:
        if seed not in _TARGETS:
            _TARGETS[seed] = Target(random_mixture(seed), seed)
    return [_TARGETS[seed] for seed in SEEDS]


def distances(
    solver: str, steps: int, seed: int, grid: str | None = "log-snr"
) -> tuple[list[float], int]:
    """The distance on each instance and the largest number of calls made; found once."""
    key = (solver, steps, seed, grid)
    if key not in _FOUND:
        runs = [(target, *target.draw(solver, steps, seed, grid=grid)) for target in targets()]
        _FOUND[key] = [t.distance(x) for t, x, _ in runs], max(calls for *_, calls in runs)
    return _FOUND[key]


def bound(solver: str, rival: str, calls: int) -> float:
    """The bound of a case, or infinity."""
    found = [b for s, r, c, b in BOUNDS if (s, r, c) == (solver, rival, calls)]
    return found[0] if found else math.inf


def parse(case: str) -> tuple[str, int, str]:
    """Solver, calls and rival of `<solver>/calls=<n>/<rival>`.

    Raises:
        ValueError: a name of another form.
    """
    parts = case.split("/")
    if len(parts) != 3 or not parts[1].startswith("calls=") or not parts[1][6:].isdigit():
        raise ValueError(f"case {case!r}: expected <solver>/calls=<n>/<rival>, such as {CASES[0]}")
    return parts[0], int(parts[1][6:]), parts[2]


def run(case: str, settings: Settings) -> Iterator[Row]:
    """Whether calls keep to the number and the floor is below both, then distances and ratio."""
    solver, calls, rival = parse(case)
    found = {name: distances(name, calls, settings.seed) for name in (solver, rival)}
    over = max(made for _, made in found.values()) / calls
    yield Row(SUITE, case, "calls", CORRECTNESS, over)
    floor = geometric_mean([target.floor for target in targets()])
    yield Row(SUITE, case, "truth", "sliced_w2", floor)
    for name, (values, made) in found.items():
        low, high = min(values), max(values)
        yield Row(SUITE, case, name, "sliced_w2", geometric_mean(values), "", low, high)
        yield Row(SUITE, case, name, "calls", made)
    each = [a / b for a, b in zip(found[solver][0], found[rival][0], strict=True)]
    ratio = geometric_mean(each)
    yield Row(SUITE, case, rival, "ratio", ratio, "x", min(each), max(each))
    limit = bound(solver, rival, calls)
    if math.isfinite(limit):
        yield Row(SUITE, case, rival, "ratio_over_bound", ratio / limit)
