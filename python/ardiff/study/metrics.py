"""Distances of samples to a law that can be drawn from, each beside its floor: what exact draws of
the same number have."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.mixture import GaussianMixture

DIRECTIONS = 48
PAIRED = 500  # samples of the metrics that compare all pairs
BANDWIDTHS = (1 / 64, 1 / 8, 1.0)  # of the MMD's kernels, squared, in units of the total variance


class Sliced:
    """Sliced Wasserstein distances to a law, given by ten or so times as many exact draws.

    Samples and draws are projected on fixed directions; on each, sorted samples are compared with
    the quantiles of the draws (Bonneel et al. 2015).

    Args:
        directions: float64 `[d, D]`, of length 1.
        draws: exact draws, float64 `[samples * k, d]`.
        samples: how many samples are compared.
    """

    def __init__(self, directions: Tensor, draws: Tensor, samples: int) -> None:
        self._directions = directions
        ranked = (draws @ directions).sort(0).values
        self._quantiles = ranked.reshape(samples, -1, directions.shape[1]).mean(1)

    def _differences(self, x: Tensor) -> Tensor:
        return (x.double() @ self._directions).sort(0).values - self._quantiles

    def w1(self, x: Tensor) -> float:
        """Of samples `[samples, d]`: the mean over directions of the distance moved."""
        return float(self._differences(x).abs().mean())

    def w2(self, x: Tensor) -> float:
        """The root of the mean over directions of its square."""
        return float(self._differences(x).square().mean().sqrt())


def unit_directions(d: int, generator: torch.Generator, count: int = DIRECTIONS) -> Tensor:
    """Uniform on the sphere, float64 `[d, count]`."""
    directions = torch.randn(d, count, generator=generator, dtype=torch.float64)
    return directions / directions.norm(dim=0)


def energy_distance(x: Tensor, y: Tensor) -> float:
    """The root of 2 E|X - Y| - E|X - X'| - E|Y - Y'| over all pairs (Szekely & Rizzo 2013)."""
    x, y = x.double(), y.double()
    square = 2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean()
    return float(square.clamp(min=0).sqrt())


class ExactMMD:
    """Maximum mean discrepancy to a Gaussian mixture, whose own terms are exact (Gretton 2012).

    The kernel is the mean of Gaussian ones of the squared bandwidths :data:`BANDWIDTHS` times the
    mixture's total variance. Its expectations under a mixture are Gaussian densities.
    """

    def __init__(self, mixture: GaussianMixture) -> None:
        self.mixture = mixture
        total = float(mixture.variance().sum())
        self._squares = [total * each for each in BANDWIDTHS]
        means, variances = mixture.means, mixture.variances
        pair = mixture.weights[:, None] * mixture.weights
        both = variances[:, None] + variances
        self._own = sum(
            float((pair * _expectation(means[:, None] - means, both, h)).sum())
            for h in self._squares
        ) / len(self._squares)

    def __call__(self, x: Tensor) -> float:
        """Of samples `[n, d]`, by all pairs of them, each with itself too."""
        x = x.double()
        apart = torch.cdist(x, x).square()
        gaps = x[:, None] - self.mixture.means
        found = 0.0
        for h in self._squares:
            own = torch.exp(-apart / (2 * h)).mean()
            cross = (_expectation(gaps, self.mixture.variances, h) @ self.mixture.weights).mean()
            found += float(own - 2 * cross)
        return max(found / len(self._squares) + self._own, 0.0) ** 0.5


def _expectation(gap: Tensor, variance: Tensor, h: float) -> Tensor:
    """E exp(-|gap + n|^2 / 2h) with n ~ N(0, variance), over the last axis."""
    wide = h + variance
    return torch.exp(0.5 * ((h / wide).log() - gap**2 / wide).sum(-1))


def mode_weights(mixture: GaussianMixture, x: Tensor) -> float:
    """Total variation between the modes' weights among samples and their own."""
    return float((mixture.responsibilities(x).mean(0) - mixture.weights).abs().sum() / 2)


def within_variance(mixture: GaussianMixture, x: Tensor) -> float:
    """Mean squared distance of samples to their mode's centre in its standard deviations, per
    dimension: 1 for a law with modes that do not overlap, less where they are too narrow."""
    mode = mixture.responsibilities(x).argmax(-1)
    gap = x.double() - mixture.means[mode]
    return float((gap**2 / mixture.variances[mode]).mean())


class Judge:
    """The metrics of samples of one law, and their floors.

    Args:
        draws: independent exact draws: first :data:`ardiff.study.problems.TRUTH_DRAWS` times
            `samples`, then `samples` of each set that a floor is taken of, float64 `[n, d]`.
        samples: how many samples are judged.
        seed: of the directions.
        mixture: the law itself where it is known; without it there are no MMD and no figures of
            modes.

    Attributes:
        floor: of each metric the mean over the sets of exact draws.
        spread: their standard deviation.
    """

    def __init__(
        self, draws: Sequence[Tensor], samples: int, seed: int, mixture: GaussianMixture | None
    ) -> None:
        truth, *sets = draws
        generator = torch.Generator().manual_seed(seed)
        self.mixture = mixture
        self._mmd = None if mixture is None else ExactMMD(mixture)
        self._sliced = Sliced(unit_directions(truth.shape[1], generator), truth, samples)
        self._some = truth[torch.randperm(len(truth), generator=generator)[:PAIRED]]
        found = [self(each) for each in sets]
        values = {name: torch.tensor([each[name] for each in found]) for name in found[0]}
        self.floor = {name: float(each.mean()) for name, each in values.items()}
        self.spread = {name: float(each.std()) for name, each in values.items()}

    def sliced_w2(self, x: Tensor) -> float:
        """Sliced W2 alone; infinite where a sample is not finite."""
        return self._sliced.w2(x) if bool(x.isfinite().all()) else math.inf

    def __call__(self, x: Tensor) -> dict[str, float]:
        """The metrics of samples `[samples, d]`; infinite where a sample is not finite."""
        some = x[:PAIRED]
        if not bool(x.isfinite().all()):
            return dict.fromkeys(self.floor, math.inf)
        found = {
            "sliced_w2": self._sliced.w2(x),
            "sliced_w1": self._sliced.w1(x),
            "energy": energy_distance(some, self._some),
        }
        if self.mixture is not None:
            found["mmd"] = self._mmd(some)
            found["mode_weights"] = mode_weights(self.mixture, x)
            found["within_variance"] = within_variance(self.mixture, x)
        return found
