"""What solvers are compared on: a target, a model of it, and the judge of samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..data.mixture import GaussianMixture, random_mixture
from ..loop.run import run
from ..noise import initial_state, make_key, make_stream
from ..solvers import solver
from ..tables.table import StepTable
from . import scores
from .metrics import Judge
from .targets import TARGETS

PATH, PREDICTION = "edm", "sample"
SCORES = ("exact", "perturbed", "guided", "learned")
TRUTH_DRAWS, FLOOR_SETS = 10, 4
EXACT_CALLS = 200
GUIDANCE = 3.0
CAP = 0.05
ODE_SEED = 1000  # of the law of a guided model: far from the seeds of the samples judged


@dataclass(frozen=True)
class Problem:
    """A target with a model of it.

    Attributes:
        target, score: names; score is one of :data:`SCORES`.
        model: ``model(x, level, condition)``, a data prediction on the path edm.
        d: elements of a sample. norm: root mean square length of the data. smallest: the least
            standard deviation of a component.
        guided: arguments of the loop for a guided model.
        judge: of `samples` samples. For a guided model, whose law has no formula, it compares with
            the ends of the exact ODE; for every other with the target itself, which a wrong score
            does not reach.
    """

    target: str
    score: str
    model: scores.Model
    d: int
    norm: float
    smallest: float
    samples: int
    judge: Judge
    guided: dict[str, Any] = field(default_factory=dict)
    _ends: dict[tuple[int, float], Tensor] = field(default_factory=dict)

    def draw(self, table: StepTable, seed: int, count: int | None = None) -> Tensor:
        """Samples 0 to `count` - 1 of a seed, float32 `[count, d]`."""
        return draw(self.model, table, self.d, seed, count or self.samples, self.guided)

    def table(self, name: str, calls: int, **options) -> StepTable:
        """The table of a solver for this model."""
        return solver(name, path=PATH, prediction=PREDICTION, steps=calls, **options)

    def exact_end(self, seed: int, start: float, count: int) -> Tensor:
        """Where the exact probability-flow ODE leads from ratio `start`, `[count, d]`."""
        key = seed, start
        if key not in self._ends:
            self._ends[key] = self.draw(exact_table(self.smallest, start), seed, count)
        return self._ends[key]

    def end_error(self, x: Tensor, table: StepTable, seed: int, count: int) -> float:
        """Strong error of the first `count` samples to their exact ends, in units of `norm`."""
        exact = self.exact_end(seed, float(table.level[0]), count)
        return end_error(x[:count], exact, self.norm)


def draw(
    model: scores.Model, table: StepTable, d: int, seed: int, count: int, guided: dict[str, Any]
) -> Tensor:
    """Samples 0 to `count` - 1 of a seed, float32 `[count, d]`."""
    key, stream = make_key(seed, "cpu"), make_stream(None, count, 0, "cpu")
    x = initial_state(table, key, stream, d)
    return run(table, model, x, key=key, stream=stream, **guided)


def exact_table(smallest: float, start: float = 40.0) -> StepTable:
    """Of the exact ODE: third order, from ratio `start` to a fiftieth of the least deviation."""
    return solver(
        "dpmpp-3m", path=PATH, prediction=PREDICTION, steps=EXACT_CALLS, ratio_max=start,
        ratio_min=smallest / 50,
    )  # fmt: skip


def end_error(x: Tensor, exact: Tensor, norm: float) -> float:
    """The root of the mean of e^2 / (1 + e^2 / CAP), e the distance of a sample to its exact end in
    units of `norm`: a sample that went to another mode counts no more than .22."""
    e2 = ((x - exact) / norm).double().square().sum(1)
    return float((e2 / (1 + e2 / CAP)).mean().sqrt())


def grids(smallest: float, scale: float) -> dict[str, dict[str, Any]]:
    """Options of the three grids on which a solver is tried, for data of size `scale`."""
    narrow = {"ratio_max": 40.0, "ratio_min": smallest / 10}
    return {
        "log-snr": {"grid": "log-snr", **narrow},
        "log-snr-.02": {"grid": "log-snr", "ratio_max": 40.0, "ratio_min": 0.02 * scale},
        "karras": {"grid": "karras", **narrow},
    }


def mixture_of(target: str) -> GaussianMixture:
    """The target of a name: of :data:`ardiff.study.targets.TARGETS`, or ``random-<seed>``.

    Raises:
        ValueError: an unknown name.
    """
    kind, _, seed = target.partition("-")
    if kind == "random" and seed.isdecimal():
        return random_mixture(int(seed))
    if target not in TARGETS:
        raise ValueError(f"unknown target {target!r}; known: {', '.join(TARGETS)}, random-<seed>")
    return TARGETS[target]()


def guided_model(mixture: GaussianMixture) -> tuple[scores.Model, dict[str, Any]]:
    """u + w (c - u), w = :data:`GUIDANCE`: u the mixture, c the first half of its components."""
    half = max(1, len(mixture.means) // 2)
    part = GaussianMixture(
        mixture.means[:half], mixture.variances[:half], mixture.weights[:half].float()
    )
    models = [each.model(PATH, PREDICTION) for each in (mixture, part)]

    def model(x: Tensor, level: Tensor, condition: Any) -> Tensor:
        return models[condition == "half"](x, level)

    guidance = torch.tensor([GUIDANCE])
    return model, {"condition": "half", "uncond": "all", "guidance": guidance}


def make_problem(
    target: str, score: str, samples: int, seed: int, training_steps: int = 1500
) -> Problem:
    """A problem; `seed` is that of the perturbation, the network, the exact draws.

    Raises:
        ValueError: an unknown target or score.
    """
    if score not in SCORES:
        raise ValueError(f"unknown score {score!r}; known: {', '.join(SCORES)}")
    mixture = mixture_of(target)
    d, smallest = mixture.means.shape[1], float(mixture.variances.min().sqrt())
    norm = math.sqrt(d) * scores.scale_of(mixture)
    generator = torch.Generator().manual_seed(seed)
    guided: dict[str, Any] = {}
    law: GaussianMixture | None = mixture

    def exact_draws(count: int) -> Tensor:
        return mixture.sample(count, generator)

    if score == "exact":
        model = mixture.model(PATH, PREDICTION)
    elif score == "perturbed":
        model = scores.perturbed(mixture, seed)
    elif score == "learned":
        model = scores.learned(mixture, seed, training_steps)
    else:
        model, guided = guided_model(mixture)
        law, exact_draws = None, _ends_of(model, guided, smallest, d, samples, seed)
    counts = [samples * TRUTH_DRAWS, *[samples] * FLOOR_SETS]
    judge = Judge([exact_draws(count) for count in counts], samples, seed, law)
    return Problem(target, score, model, d, norm, smallest, samples, judge, guided)


def _ends_of(
    model: scores.Model, guided: dict[str, Any], smallest: float, d: int, batch: int, seed: int
) -> Callable[[int], Tensor]:
    """A function that draws from the law at the end of the exact ODE, batch after batch."""
    table, drawn = exact_table(smallest), 0

    def draws(count: int) -> Tensor:
        nonlocal drawn
        found = []
        for _ in range(count // batch):
            found.append(draw(model, table, d, ODE_SEED + 100 * seed + drawn, batch, guided))
            drawn += 1
        return torch.cat(found).double()

    return draws
