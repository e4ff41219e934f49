"""The mixtures that the sampler study draws from, by name."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..data.mixture import GaussianMixture

DIM = 10  # of the papers' targets; their structure lies in the first two
NARROW = 0.007  # variance of a mode along each axis, in all but circle-6
OFF = 1e-3  # standard deviation off a plane


def _in_plane(centres: Tensor, variance: float) -> GaussianMixture:
    """Modes of equal weight about `centres` `[K, 2]`, which are 0 in the other dimensions."""
    means = torch.zeros(len(centres), DIM, dtype=torch.float64)
    means[:, :2] = centres
    return GaussianMixture(means, variance)


def _at_angles(angles: Tensor, radii: Tensor | float = 1.0) -> Tensor:
    return torch.stack([radii * angles.cos(), radii * angles.sin()], 1)


def circle_6() -> GaussianMixture:
    """Six modes on the unit circle, variance .05, d = 10 (Huang et al. 2024, section 5).

    Neighbours are 4.5 standard deviations apart, so that they overlap.
    """
    return _in_plane(_at_angles(2 * math.pi * torch.arange(6, dtype=torch.float64) / 6), 0.05)


def circle_18() -> GaussianMixture:
    """Eighteen modes on the unit circle, variance .007, d = 10.

    Each of the six angles of :func:`circle_6` has two more modes 20 degrees away, which makes
    eighteen even ones.
    """
    return _in_plane(_at_angles(2 * math.pi * torch.arange(18, dtype=torch.float64) / 18), NARROW)


def chessboard() -> GaussianMixture:
    """The eight black squares of a 4 x 4 board as modes, variance .007, d = 10.

    Squares are .25 wide and the board's centre is 0, so that diagonal neighbours are 4.2 standard
    deviations apart.
    """
    black = [(i, j) for i in range(4) for j in range(4) if (i + j) % 2 == 0]
    centres = torch.tensor(black, dtype=torch.float64) / 4
    return _in_plane(centres - centres.mean(0), NARROW)


def spiral() -> GaussianMixture:
    """Sixteen modes on two turns of an Archimedean spiral out to radius 1, variance .007, d = 10.

    Even in the angle, so that the inner modes overlap and the outer ones lie far apart.
    """
    along = torch.linspace(0, 1, 16, dtype=torch.float64)
    return _in_plane(_at_angles(4 * math.pi * along, along), NARROW)


def stiff() -> GaussianMixture:
    """x1 of three modes of std .2 and x2 = x1 + N(0, .02^2), in the eigenvectors' coordinates,
    d = 2: within a mode one direction is 20 times as narrow as the other."""
    noise = 0.02
    covariance = torch.tensor([[0.04, 0.04], [0.04, 0.04 + noise**2]], dtype=torch.float64)
    variances, vectors = torch.linalg.eigh(covariance)
    centres = torch.tensor([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    weights = torch.tensor([0.3, 0.5, 0.2])
    return GaussianMixture(centres @ vectors, variances.expand(3, 2), weights)


def plane() -> GaussianMixture:
    """Six modes of std .15 around a circle of radius 1 in a plane of d = 32: off it std .001."""
    angle = torch.arange(6, dtype=torch.float64) * math.pi / 3
    centres = torch.zeros(6, 32, dtype=torch.float64)
    centres[:, 0], centres[:, 1] = angle.cos(), angle.sin()
    variances = torch.full((6, 32), OFF**2, dtype=torch.float64)
    variances[:, :2] = 0.15**2
    return GaussianMixture(centres, variances)


def curve() -> GaussianMixture:
    """A closed curve in d = 16, the unit circle of two coordinates beside one of half the radius
    and twice the speed, as 256 modes of std .02."""
    angle = torch.arange(256, dtype=torch.float64) * (2 * math.pi / 256)
    centres = torch.zeros(256, 16, dtype=torch.float64)
    for place, (radius, speed) in enumerate(((1.0, 1), (0.5, 2))):
        centres[:, 2 * place] = radius * (speed * angle).cos()
        centres[:, 2 * place + 1] = radius * (speed * angle).sin()
    return GaussianMixture(centres, 0.02**2)


PAPER: dict[str, Callable[[], GaussianMixture]] = {
    "circle-6": circle_6,
    "circle-18": circle_18,
    "chessboard": chessboard,
    "spiral": spiral,
}
TARGETS: dict[str, Callable[[], GaussianMixture]] = {
    **PAPER,
    "stiff": stiff,
    "plane": plane,
    "curve": curve,
}
