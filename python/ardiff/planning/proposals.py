"""The acceptance of a proposal at every step size, from a few products of the curvature.

A proposal of the solvers that accept and reject is a number of leapfrog steps from (z, v), v fresh:
MALA's of step tau is one of length (2 tau)^1/2. Where the gradient of g is linear over the
proposal, G(z + delta) = G(z) + H delta, all states of the leapfrog are combinations of

    G, H G, .., H^n G    and    v, H v, .., H^n v

with weights that depend on the step size alone, and so the energy error dH is a quadratic form of
these weights in the inner products of the vectors. Hence 2 n products of H at the state where a
stage starts, n the leapfrog steps, give the first proposal's acceptance at all step sizes at once.

In units of the envelope, of width w: H is w^2 times the Hessian of g and G is w times its gradient.
On an exact score H = 1 - w^2 alpha^2 / sigma^4 Cov(x0 | z), at most 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..solvers import default_tau

SCALES = tuple(2 ** (k / 8) for k in range(-64, 49))  # of tau: from 1/256 to 64, nine percent apart
START = SCALES.index(1.0)


class Leapfrog(NamedTuple):
    """A proposal in units of the envelope: steps of v -= kick G, z += drift v, v -= kick G."""

    kick: float
    drift: float
    steps: int = 1


def ladder(name: str, options: dict[str, Any]) -> list[float]:
    """tau times each of :data:`SCALES`, as far as solver `name` allows; from its default on, or
    from the tau in `options`.

    Raises:
        ValueError: a solver without tau.
    """
    tau = options.get("tau")
    tau = default_tau(name, options) if tau is None else tau
    taus = [tau * scale for scale in SCALES]
    # an angle below pi
    return [tau for tau in taus if tau < 3.1] if name == "rtk-harmonic-mala" else taus


def leapfrog(name: str, tau: float, options: dict[str, Any]) -> Leapfrog:
    """The proposal of solver `name` with step `tau`.

    Raises:
        ValueError: a solver without proposals.
    """
    if name in ("rtk-mala", "rtk-mala-projected"):
        return Leapfrog(math.sqrt(tau / 2), math.sqrt(2 * tau))
    if name == "rtk-hmc":
        return Leapfrog(tau / 2, tau, int(options.get("leapfrog") or 2))
    if name == "rtk-harmonic-mala":
        return Leapfrog(math.tan(tau / 2), math.sin(tau))
    raise ValueError(f"solver {name} makes no proposals")


def _weights(move: Leapfrog) -> tuple[np.ndarray, np.ndarray]:
    """Of z' - z and of v' on (G, H G, .., v, H v, ..), float64 `[2, n + 1]` each."""
    gradient, v = np.eye(2 * (move.steps + 1))[[0, move.steps + 1]].reshape(2, 2, -1)
    z = np.zeros_like(v)
    for _ in range(move.steps):
        v = v - move.kick * (gradient + _times_h(z))
        z = z + move.drift * v
        v = v - move.kick * (gradient + _times_h(z))
    return z, v


def _times_h(weights: np.ndarray) -> np.ndarray:
    return np.pad(weights, ((0, 0), (1, 0)))[:, :-1]


def log_acceptance(moves: Sequence[Leapfrog], vectors: Sequence[Tensor]) -> Tensor:
    """The log acceptance ratio -dH of each of `moves` where G is linear, float64 `[moves, B]`.

    Args:
        moves: of equally many steps n.
        vectors: G, H G, .., H^n G, v, H v, .., H^n v, float64 `[B, d]` each.
    """
    joined = torch.stack(list(vectors), 1)
    inner = joined @ joined.mT
    found = []
    for move in moves:
        z, v = _weights(move)
        start = np.eye(z.size)
        gradient, velocity = start[0], start[move.steps + 1]
        # the trapezoidal rule, exact here: g(z') - g(z) = (z' - z).(G + G') / 2
        mean_gradient = gradient + _times_h(z).ravel() / 2
        form = np.outer(z.ravel(), mean_gradient)
        form += (np.outer(v.ravel(), v.ravel()) - np.outer(velocity, velocity)) / 2
        found.append(-(inner * torch.from_numpy(form).to(inner)).sum((1, 2)))
    return torch.stack(found)


def acceptance(moves: Sequence[Leapfrog], vectors: Sequence[Tensor]) -> np.ndarray:
    """The mean over the samples of min(1, e^-dH) for each move, float64 `[moves]`."""
    return log_acceptance(moves, vectors).clamp(max=0).exp().mean(1).cpu().numpy()
