"""The mixtures that the sampler study draws from, by name."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..data.mixture import GaussianMixture

DIM = 10  # of the papers' targets; their structure lies in the first two
NARROW = 0.007  # variance of a mode along each axis, in all but circle-6


def _in_plane(centres: Tensor, variance: float) -> GaussianMixture:
    """Modes of equal weight about `centres` `[K, 2]`, which are 0 in the other dimensions."""
    means = torch.zeros(len(centres), DIM, dtype=torch.float64)
    means[:, :2] = centres
    return GaussianMixture(means, variance)


def _at_angles(angles: Tensor, radii: Tensor | float = 1.0) -> Tensor:
    return torch.stack([radii * angles.cos(), radii * angles.sin()], 1)


def circle_6(seed: int = 0) -> GaussianMixture:
    """Six modes on the unit circle, variance .05, d = 10 (Huang et al. 2024, section 5).

    Neighbours are 4.5 standard deviations apart, so that they overlap. Nothing is drawn by `seed`.
    """
    return _in_plane(_at_angles(2 * math.pi * torch.arange(6, dtype=torch.float64) / 6), 0.05)


def circle_18(seed: int = 0) -> GaussianMixture:
    """Eighteen modes on the unit circle, variance .007, d = 10.

    Each of the six angles of :func:`circle_6` has two more modes 20 degrees away, which makes
    eighteen even ones. Nothing is drawn by `seed`.
    """
    return _in_plane(_at_angles(2 * math.pi * torch.arange(18, dtype=torch.float64) / 18), NARROW)


def chessboard(seed: int = 0) -> GaussianMixture:
    """The eight black squares of a 4 x 4 board as modes, variance .007, d = 10.

    Squares are .25 wide and the board's centre is 0, so that diagonal neighbours are 4.2 standard
    deviations apart. Nothing is drawn by `seed`.
    """
    black = [(i, j) for i in range(4) for j in range(4) if (i + j) % 2 == 0]
    centres = torch.tensor(black, dtype=torch.float64) / 4
    return _in_plane(centres - centres.mean(0), NARROW)


def spiral(seed: int = 0) -> GaussianMixture:
    """Sixteen modes on two turns of an Archimedean spiral out to radius 1, variance .007, d = 10.

    Even in the angle, so that the inner modes overlap and the outer ones lie far apart. Nothing is
    drawn by `seed`.
    """
    along = torch.linspace(0, 1, 16, dtype=torch.float64)
    return _in_plane(_at_angles(4 * math.pi * along, along), NARROW)


PAPER: dict[str, Callable[[int], GaussianMixture]] = {
    "circle-6": circle_6,
    "circle-18": circle_18,
    "chessboard": chessboard,
    "spiral": spiral,
}
TARGETS: dict[str, Callable[[int], GaussianMixture]] = {**PAPER}
