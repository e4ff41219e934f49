"""Trains the tables of the solver ``learned`` on Gaussian mixtures and writes their files.

    python -m benchmarks.train_learned unit 8 5 16 32
    python -m benchmarks.train_learned wide 8 5 16 32

The mixtures are those of `random_mixture`: seeds 2001 to 2042 are fitted to, 1 to 36 decide when to
end. Half of them are guided towards the first half of their components. In the set ``unit`` the
norm of the centres is .8 to 1.25, in ``wide`` .5 to 4.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ardiff._files import replacing
from ardiff.data.mixture import random_mixture
from ardiff.solvers import _learned
from ardiff.tables.table_family import Family
from ardiff.training.table_fit import Budget, Case, adams_rows, error, gauss_newton, simulate

NORMS = {"unit": (0.8, 1.25), "wide": (0.5, 4.0)}
TRAINING_SEEDS = range(2001, 2043)
HELD_OUT_SEEDS = range(1, 37)
GUIDANCE = (1.0, 4.0)
BATCHES, RUNS, HELD_OUT_RUNS, ITERATIONS = 4, 24, 96, 40
FIRST, LAST, TEACHER_STEPS = 40.0, 0.0015, 100  # sigma / alpha at the ends; the teacher's steps


class Mixtures:
    """Several mixtures of one number of components and dimensions, with guidance: D of all at once.

    The condition is the first half of the components. D = u + w (c - u), u of all components and c
    of those of the condition.

    Args:
        seeds: of :func:`ardiff.data.mixture.random_mixture`, equal modulo 3.
        norm: of each, the norm of its centres, with which its standard deviations are multiplied.
        guidance: of each, w; 0 is D = u.
    """

    def __init__(self, seeds: Sequence[int], norm: Tensor, guidance: Tensor) -> None:
        made = [random_mixture(seed) for seed in seeds]
        scale = norm[:, None, None].double()
        self._means = (torch.stack([m.means for m in made]) * scale).float()
        self._variances = (torch.stack([m.variances for m in made]) * scale**2).float()
        self._logs = torch.stack([m.weights for m in made]).log().float()
        self._guidance = guidance.float()[:, None, None]
        modes = self._logs.shape[1]
        self._other = torch.where(torch.arange(modes) < modes // 2, 0.0, -torch.inf)
        self.d = self._means.shape[2]

    def __call__(self, y: Tensor, s: Tensor) -> Tensor:
        """D(y, s), `[G, B, d]`."""
        precision = 1 / (self._variances + s * s)
        centred = self._means * precision
        constant = self._logs - 0.5 * (self._means * centred - precision.log()).sum(-1)
        joint = torch.baddbmm(constant[:, None], y, centred.transpose(1, 2))
        joint = joint - 0.5 * torch.bmm(y * y, precision.transpose(1, 2))
        share = joint.softmax(-1)
        share = share + self._guidance * ((joint + self._other).softmax(-1) - share)
        gain = self._variances * precision
        return torch.bmm(share, self._means - gain * self._means) + y * torch.bmm(share, gain)


def cases(
    seeds: Sequence[int],
    runs: int,
    norms: tuple[float, float],
    seed: int,
    *,
    guided: float = 0.5,
    guidance: tuple[float, float] = GUIDANCE,
) -> list[Case]:
    """A case for each kind of mixture, with `runs` runs of each mixture.

    Args:
        norms: the range of the norms, log-uniform.
        seed: of norms, weights and starting points.
        guided: the share of the mixtures that are guided, with weights uniform in `guidance`.
    """
    generator = torch.Generator().manual_seed(seed)
    s = np.exp(np.linspace(math.log(FIRST), math.log(LAST), TEACHER_STEPS))
    teacher, found = torch.tensor(adams_rows(s)), []
    for kind in range(3):
        own = [n for n in seeds if n % 3 == kind]
        u = torch.rand(3, len(own), generator=generator)
        norm = norms[0] * (norms[1] / norms[0]) ** u[0]
        low, high = guidance
        weight = torch.where(u[1] < guided, low + (high - low) * u[2], torch.zeros(()))
        mixtures = Mixtures(own, norm, weight)
        start = FIRST * torch.randn(len(own), runs, mixtures.d, generator=generator)
        with torch.no_grad():
            end = simulate(mixtures, teacher, start)
        found.append(Case(mixtures, start, end, 0.05 * norm[:, None] ** 2))
    return found


def train(
    steps: int,
    batches: Sequence[Sequence[Case]],
    held_out: Sequence[Case],
    iterations: int = ITERATIONS,
) -> tuple[_learned.Entry, float, float]:
    """The entry learned, its error on the held-out cases and that of its start."""
    tried = []
    for last in (0.005, 0.02, 0.05):
        s = np.exp(np.linspace(math.log(FIRST), math.log(last), steps))
        tried.append(adams_rows(s, 3 if steps > 16 else 2))
    rows = min(tried, key=lambda rows: error(held_out, torch.tensor(rows)))
    family = Family(steps, FIRST)
    best, least = gauss_newton(
        family, family.parameters(rows), batches, held_out, Budget(iterations, math.inf), patience=6
    )
    before = error(held_out, torch.tensor(rows))
    return _learned.entry_of(family.rows(best).numpy()), least, before


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_learned", description="Train the tables of `learned`."
    )
    parser.add_argument("name", choices=NORMS, help="the set")
    parser.add_argument("steps", type=int, nargs="+", help="numbers of steps")
    parser.add_argument("--out", type=Path, help="the file; default: the shipped one")
    args = parser.parse_args(argv)
    out = args.out or Path(_learned.__file__).parent / f"{args.name}.json"
    norms = NORMS[args.name]
    batches = [cases(TRAINING_SEEDS, RUNS, norms, 10 + n) for n in range(BATCHES)]
    held_out = cases(HELD_OUT_SEEDS, HELD_OUT_RUNS, norms, 7)
    tables = _learned.read(out) if out.exists() else {}
    for steps in args.steps:
        tables[steps], found, before = train(steps, batches, held_out)
        print(f"{args.name}, {steps} steps: error {found:.5f}, its start {before:.5f}", flush=True)
        with replacing(out) as temporary:
            temporary.write_text(_learned.text(tables))


if __name__ == "__main__":
    main()
