"""Marginal accuracy: the authors' and the one that their text defines."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...data.mixture import GaussianMixture

BINS_PER_STD = 2  # of the narrowest mode: a mode has about ten bins


def authors_accuracy(x: Tensor, truth: Tensor, bins: int, reach: float) -> float:
    """1 - TV / 2, TV the mean over all dimensions between histograms in [-reach, reach].

    Three faults: TV is halved twice, what lies outside is dropped, and all ten dimensions count,
    though the structure is in two. x `[n, d]` and truth `[m, d]`, float32.
    """
    apart = []
    for a, b in zip(x.T, truth.T, strict=True):
        p, q = (torch.histc(v, bins, -reach, reach) for v in (a, b))
        apart.append(float(0.5 * (p / p.sum() - q / q.sum()).abs().sum()))
    return 1 - sum(apart) / len(apart) / 2


class Marginals:
    """The exact law of a mixture in the bins of each dimension.

    Bins are half as wide as the narrowest mode's standard deviation and reach 5 standard
    deviations past the outermost modes; the two at the ends hold all that lies beyond.
    """

    def __init__(self, mixture: GaussianMixture) -> None:
        std = mixture.variances.sqrt()
        low, high = mixture.means - 5 * std, mixture.means + 5 * std
        width = float(std.min()) / BINS_PER_STD
        self.edges, self.masses = [], []
        for j in range(mixture.means.shape[1]):
            count = math.ceil(float(high[:, j].max() - low[:, j].min()) / width)
            inner = float(low[:, j].min()) + width * torch.arange(1, count, dtype=torch.float64)
            below = torch.special.ndtr((inner[:, None] - mixture.means[:, j]) / std[:, j])
            cumulative = torch.cat([torch.zeros(1), below @ mixture.weights, torch.ones(1)])
            self.edges.append(inner)
            self.masses.append(cumulative.diff())

    def distances(self, x: Tensor) -> Tensor:
        """TV of the histogram of x `[n, d]` to the exact law, in each dimension: float64 `[d]`."""
        found = []
        for values, edges, masses in zip(x.double().T, self.edges, self.masses, strict=True):
            bins = torch.bucketize(values.contiguous(), edges)
            share = torch.bincount(bins, minlength=len(masses)).double() / len(values)
            found.append(0.5 * (share - masses).abs().sum())
        return torch.stack(found)

    def accuracy(self, x: Tensor) -> float:
        """1 - TV, the mean over all dimensions."""
        return 1 - float(self.distances(x).mean())
