"""Calls on data along a curve: a ring of modes of deviation s on the unit circle of a plane.

For small s no Hessian of the data is bounded, which the theory's bounds ask for. Measured are the
mean squares of the distance from the circle, in the plane and normal to it, over those of exact
draws; 1 is right.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from ..data.mixture import GaussianMixture
from ..sampling import sample
from .curves import PATH, calls_cell, crossing
from .text import table

SOLVERS, CHAINS = ("ddpm", "ddim", "dpmpp-2m", "rtk-harmonic"), 4000
PLACES = ((4, 0.1), (32, 0.1), (4, 0.025), (32, 0.025))  # d, s
STEPS = (8, 12, 16, 24, 32, 48, 64, 96, 128)
BOUND = 0.1


def ring(dim: int, std: float) -> GaussianMixture:
    """Modes on the unit circle, a deviation apart: without gaps that a sampler could see."""
    count = math.ceil(2 * math.pi / std)
    angle = torch.arange(count, dtype=torch.float64) * 2 * math.pi / count
    means = torch.zeros(count, dim, dtype=torch.float64)
    means[:, 0], means[:, 1] = angle.cos(), angle.sin()
    return GaussianMixture(means, std**2)


def off_circle(x: Tensor) -> Tensor:
    """Mean squares of the distance from the circle in the plane of the first two coordinates, and
    of the coordinates normal to the plane, float64 `[2]`."""
    x = x.double()
    radial = x[:, :2].norm(dim=1) - 1
    return torch.stack([radial.square().mean(), x[:, 2:].square().mean()])


def calls_on_ring(solver: str, dim: int, std: float, seed: int) -> tuple[float | None, float]:
    """Calls until both mean squares are within a tenth of exact draws' to stay, and what is
    left."""
    target = ring(dim, std)
    exact = off_circle(target.sample(100_000, torch.Generator().manual_seed(seed)))
    calls, errors = [], []
    for steps in STEPS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # few stages miss rtk-harmonic's window
            x, stats = sample(
                target.model(PATH, "sample"), (CHAINS, dim), PATH, "sample", solver, steps,
                seed=seed, ratio_min=std / 10, return_stats=True,
            )  # fmt: skip
        calls.append(stats.calls)
        errors.append(float((off_circle(x) / exact - 1).abs().max()))
        if len(errors) > 1 and max(errors[-2:]) < BOUND / 2:
            break
    return crossing(calls, errors, BOUND), errors[-1]


def run(seed: int, cut: bool) -> list[dict[str, Any]]:
    """Of each `solver`, `d` and width `s` the `calls` until both mean squares are right to a tenth,
    None where those tried do not come to it, and the `error` left at the end."""
    rows = []
    for solver in SOLVERS[1:2] if cut else SOLVERS:
        for dim, std in PLACES[:1] if cut else PLACES:
            calls, left = calls_on_ring(solver, dim, std, seed)
            rows.append({"solver": solver, "d": dim, "s": std, "calls": calls, "error": left})
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The calls by solver and place."""
    at = {(row["solver"], row["d"], row["s"]): row["calls"] for row in rows}
    places = list(dict.fromkeys(key[1:] for key in at))
    lines = [
        [f"`{solver}`", *(calls_cell(at[(solver, *place)]) for place in places)]
        for solver in dict.fromkeys(solver for solver, *_ in at)
    ]
    return table(["calls on the ring", *(f"d {d}, s {s:g}" for d, s in places)], lines)
