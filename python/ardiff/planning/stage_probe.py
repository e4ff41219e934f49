"""A look at each stage of a table: states where its proposals begin, and the kernel's curvature."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..solvers._rtk import stages as rtk
from ..tables.paths import Path, Transition, data_coefficients, transition
from ..tables.table import StepTable
from .curvature import Krylov, check_finite, hessian, krylov, normals
from .model_score import Score, pilot_states


class Probe(NamedTuple):
    """What is known of a stage, in units of its envelope of width w.

    Attributes:
        t: the transition; level: of its cleaner end, as the table has it.
        gradient: w grad g at the states where proposals begin, float64 `[B, d]`.
        velocity: normals, float64 `[B, d]`.
        along: w^2 times the Hessian of g on a Krylov space that begins with the velocity.
        across: the same from the gradient.
    """

    t: Transition
    level: float
    gradient: Tensor
    velocity: Tensor
    along: Krylov
    across: Krylov

    def vectors(self, count: int) -> list[Tensor]:
        """G, H G, .., v, H v, .. up to H^count, as :mod:`.proposals` takes them."""
        return [
            *self.across.powers(self.gradient, count),
            *self.along.powers(self.velocity, count),
        ]

    def spectrum(self) -> tuple[np.ndarray, np.ndarray]:
        """Curvatures and their weights, float64 `[n]` each: the spectral density (stochastic
        Lanczos quadrature, Ubaru, Chen, Saad 2017)."""
        matrix = self.along.matrix()
        values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
        weights = vectors[:, 0] ** 2 / len(values)
        return values.flatten().cpu().numpy(), weights.flatten().cpu().numpy()

    def spread(self) -> float:
        """The start's second moment about the kernel's mean over w^2, as |G|^2 shows it beside
        |H v|^2, that of a start of width w at the mean."""
        expected = self.along.powers(self.velocity, 1)[1].square().sum()
        return float(self.gradient.square().sum() / expected)


def stage_levels(table: StepTable) -> np.ndarray:
    """The levels between which the rows of a table move, each once, float64."""
    return table.level[np.diff(table.level, prepend=np.inf) != 0]


def probes(
    score: Score, path: Path, levels: np.ndarray, inside: np.ndarray, key: Tensor, stream: Tensor,
    dim: int, warm_start: str, iterations: int, steps: int,
) -> list[Probe]:  # fmt: skip
    """A look at each stage that ends at one of `inside`, for the samples of `stream`.

    Two model calls a stage for its states, two for each of `iterations` products from the velocity
    and two for each of `steps` from the gradient.
    """
    states, outputs = pilot_states(score, path, levels[:-1], key, stream, dim)
    found = []
    for i, (a, b) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        if b not in inside:
            continue
        t = transition(path, a, b)
        noise, velocity = (normals(key, stream, dim, 2 * i + 1 + k) for k in (0, 1))
        z = _start(score.prediction, t, states[i].double(), outputs[i].double(), noise, warm_start)
        z = z.float()
        pull = t.r**2 / t.s2
        gradient = pull * z.double() - t.r / t.s2 * states[i].double() - score.at(b)(z)
        check_finite(gradient, b)
        product = hessian(score, z, b, t.sigma_b)

        def scaled(u: Tensor, product=product, w2=t.width**2, pull=pull) -> Tensor:
            return w2 * (product(u) + pull * u)

        along = krylov(scaled, velocity, iterations)
        across = krylov(scaled, t.width * gradient, steps)
        check_finite(along.image, b)
        check_finite(across.image, b)
        found.append(Probe(t, float(b), t.width * gradient, velocity, along, across))
    return found


def _start(prediction, t: Transition, x, out, noise, warm_start: str) -> Tensor:
    if warm_start == "gaussian-factor":
        return (x + np.sqrt(t.s2) * noise) / t.r
    on_x, on_x0 = rtk.ancestral(t)
    p_x, p_o = data_coefficients(prediction, t.alpha_a, t.sigma_a)
    return on_x * x + on_x0 * (p_x * x + p_o * out) + t.width * noise
