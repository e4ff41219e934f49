"""A mixture of three modes on a line, and how far samples of it are from it.

Its law is known in bins of equal mass, so that a distance is measured to some thousandths: the one
target of the study on which small biases are told from the draw.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.mixture import GaussianMixture
from ..tables.paths import get_path

PATH, PREDICTION = "ou", "sample"
CENTRES, STDS, WEIGHTS = (-1.0, -0.2, 0.9), (0.1, 0.15, 0.25), (0.5, 0.2, 0.3)
BINS = 64
# Of the last data prediction, which narrows a mode of .1 by an eighth of a percent.
RATIO_MIN = 0.005


class Line:
    """The mixture with its model and energy in float32, mode after mode.

    On 3e5 chains of one number that is 20 times as fast as `GaussianMixture.model`, which is for
    any dimension, and in which a run would spend most of its time.
    """

    def __init__(self) -> None:
        self._path = get_path(PATH)

    def _modes(self, level: Tensor) -> tuple[float, list[tuple[float, float, float]]]:
        """alpha, and (log of the height, centre, variance) of each mode at the level."""
        at = float(level[0])
        alpha, sigma = float(self._path.alpha(at)), float(self._path.sigma(at))
        modes = []
        for centre, std, weight in zip(CENTRES, STDS, WEIGHTS, strict=True):
            variance = alpha**2 * std**2 + sigma**2
            modes.append((math.log(weight) - 0.5 * math.log(variance), alpha * centre, variance))
        return alpha, modes

    def model(self, x: Tensor, level: Tensor, condition: Any) -> Tensor:
        """E[x0 | x] of x `[B, d]`, each coordinate a draw of its own."""
        alpha, modes = self._modes(level)
        logs = [log - (x - centre) ** 2 / (2 * v) for log, centre, v in modes]
        top = torch.maximum(torch.maximum(logs[0], logs[1]), logs[2])
        shares = [(log - top).exp_() for log in logs]
        parts = zip(shares, CENTRES, STDS, modes, strict=True)
        made = sum(w * (c + alpha * s**2 / v * (x - alpha * c)) for w, c, s, (_, _, v) in parts)
        return made / (shares[0] + shares[1] + shares[2])

    def energy(self, x: Tensor, level: Tensor, condition: Any) -> Tensor:
        """-log density of x `[B, d]` at the level up to a constant, `[B]`."""
        _, modes = self._modes(level)
        logs = [log - (x - centre) ** 2 / (2 * v) for log, centre, v in modes]
        return -torch.logaddexp(torch.logaddexp(logs[0], logs[1]), logs[2]).sum(1)


def target() -> GaussianMixture:
    """The mixture, for exact draws."""
    means, stds = torch.tensor(CENTRES)[:, None], torch.tensor(STDS)[:, None]
    return GaussianMixture(means, stds.double() ** 2, torch.tensor(WEIGHTS))


@functools.cache
def inner_edges() -> np.ndarray:
    """The edges between bins of equal mass, by bisection on the distribution function."""
    share = np.arange(1, BINS) / BINS
    low, high = np.full(BINS - 1, -4.0), np.full(BINS - 1, 4.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = distribution(middle) < share
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


def distribution(x: np.ndarray) -> np.ndarray:
    """P(target <= x)."""
    parts = zip(CENTRES, STDS, WEIGHTS, strict=True)
    erf = np.vectorize(math.erf)
    return sum(w / 2 * (1 + erf((x - c) / (s * math.sqrt(2)))) for c, s, w in parts)


def counts(x: Tensor) -> np.ndarray:
    """How many of all numbers of x lie in each bin, int64 `[64]`."""
    return np.bincount(np.searchsorted(inner_edges(), x.double().numpy().ravel()), minlength=BINS)


def total_variation(x: Tensor) -> float:
    """Between the shares of the bins and equal masses."""
    return float(0.5 * np.abs(counts(x) / x.numel() - 1 / BINS).sum())


def kl_of_bins(x: Tensor) -> float:
    """KL of the shares of the bins from equal masses, less that of exact draws, nats."""
    share = counts(x) / x.numel()
    share = share[share > 0]
    return float(np.sum(share * np.log(share * BINS)) - (BINS - 1) / (2 * x.numel()))
