"""The score of a mixture of equal round modes, in float32 as the authors compute it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...data.mixture import GaussianMixture


class RoundMixture:
    """Density and score at levels of the OU path, level 0 included.

    Where `GaussianMixture` gives data predictions, this gives the score, which level 0 has too.

    Args:
        mixture: modes that are all of one variance along all axes.
        floor: added to the density by which the score divides, as the authors do: far from all
            modes their score fades to 0. With 0 it is exact.

    Raises:
        ValueError: modes of several variances.
    """

    def __init__(self, mixture: GaussianMixture, floor: float = 0.0) -> None:
        self.variance = float(mixture.variances[0, 0])
        if not bool((mixture.variances == self.variance).all()):
            raise ValueError(
                "the papers' score is for modes of one variance along all axes, got variances "
                f"from {float(mixture.variances.min()):g} to {float(mixture.variances.max()):g}"
            )
        self.means, self.weights = mixture.means.float(), mixture.weights.float()
        self.floor = floor

    def at(self, x: Tensor, level: float) -> tuple[Tensor, Tensor]:
        """(log density `[B]`, score `[B, d]`) at x float32 `[B, d]`, OU time `level`."""
        variance = math.exp(-2 * level) * self.variance - math.expm1(-2 * level)
        centres = math.exp(-level) * self.means
        constant = self.weights.log() - 0.5 * (centres * centres).sum(1) / variance
        joint = torch.addmm(constant, x, centres.T / variance)
        total = joint.logsumexp(1)
        share = (joint - total[:, None]).exp()
        log_density = total - 0.5 * (x * x).sum(1) / variance
        log_density = log_density - 0.5 * x.shape[1] * math.log(2 * math.pi * variance)
        score = (share @ centres - x) / variance
        if self.floor:
            score = score * torch.sigmoid(log_density - math.log(self.floor))[:, None]
        return log_density, score

    def score(self, x: Tensor, level: Tensor, condition: object = None) -> Tensor:
        """The model that a table calls: x `[B, d]`, level `[B]`, all of them equal."""
        return self.at(x, float(level[0]))[1]
