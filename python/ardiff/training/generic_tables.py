"""The Gaussian mixtures on which the shipped tables of the solver ``learned`` are trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..data.mixture import random_mixture
from .table_fit import Case, adams_rows, simulate

TRAINING_SEEDS = range(2001, 2043)
HELD_OUT_SEEDS = range(1, 37)
FIRST, LAST = 40.0, 0.0015  # sigma / alpha at the ends of the teacher's grid
TEACHER_STEPS = 100


class Mixtures:
    """Several mixtures of one number of components and dimensions, with guidance: D of all at once.

    The condition is the first half of the components. D = u + w (c - u), u of all components and c
    of those of the condition.

    Args:
        seeds: of :func:`ardiff.data.mixture.random_mixture`, equal modulo 3.
        norm: of each, the norm of its centres, with which its standard deviations are multiplied.
        guidance: of each, w; 0 is D = u.
    """

    def __init__(
        self, seeds: Sequence[int], norm: Tensor, guidance: Tensor, dtype=torch.float32
    ) -> None:
        made = [random_mixture(seed) for seed in seeds]
        scale = norm[:, None, None].double()
        self._means = (torch.stack([m.means for m in made]) * scale).to(dtype)
        self._variances = (torch.stack([m.variances for m in made]) * scale**2).to(dtype)
        self._logs = torch.stack([m.weights for m in made]).log().to(dtype)
        self._guidance = guidance.to(dtype)[:, None, None]
        self._guided = bool((guidance != 0).any())
        modes = self._logs.shape[1]
        self._other = torch.where(torch.arange(modes) < modes // 2, 0.0, -torch.inf).to(dtype)
        self.d = self._means.shape[2]

    def __call__(self, y: Tensor, s: Tensor) -> Tensor:
        """D(y, s), `[G, B, d]`, differentiable in both."""
        precision = 1 / (self._variances + s * s)
        centred = self._means * precision
        constant = self._logs - 0.5 * ((self._means * centred) - precision.log()).sum(-1)
        joint = torch.baddbmm(constant[:, None], y, centred.transpose(1, 2))
        joint = joint - 0.5 * torch.bmm(y * y, precision.transpose(1, 2))
        share = joint.softmax(-1)
        if self._guided:
            share = share + self._guidance * ((joint + self._other).softmax(-1) - share)
        gain = self._variances * precision
        return torch.bmm(share, self._means - gain * self._means) + y * torch.bmm(share, gain)


def cases(
    seeds: Sequence[int],
    *,
    runs: int,
    norms: tuple[float, float] = (1.0, 1.0),
    guided: float = 0.0,
    guidance: tuple[float, float] = (1.0, 4.0),
    seed: int = 0,
    first: float = FIRST,
    teacher_steps: int = TEACHER_STEPS,
) -> list[Case]:
    """A case for each kind of mixture, with `runs` runs of each mixture.

    Args:
        norms: the range of the norms, log-uniform.
        guided: the share of the mixtures that are guided, with weights uniform in `guidance`.
        seed: of norms, weights and starting points.
    """
    generator = torch.Generator().manual_seed(seed)
    levels = np.exp(np.linspace(np.log(first), np.log(LAST), teacher_steps))
    teacher = torch.tensor(adams_rows(levels))
    found = []
    for kind in range(3):
        own = [n for n in seeds if n % 3 == kind]
        u = torch.rand(3, len(own), generator=generator)
        norm = norms[0] * (norms[1] / norms[0]) ** u[0]
        low, high = guidance
        weight = torch.where(u[1] < guided, low + (high - low) * u[2], torch.zeros(()))
        mixtures = Mixtures(own, norm, weight)
        start = first * torch.randn(len(own), runs, mixtures.d, generator=generator)
        with torch.no_grad():
            end = simulate(mixtures, teacher, start)
        found.append(Case(mixtures, start, end, 0.05 * norm[:, None] ** 2))
    return found
