"""Gaussian mixtures as sampling targets: exact scores, data predictions and draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..tables.paths import Path, check_prediction, get_path, output_from_data


class GaussianMixture:
    """sum_k w_k N(mu_k, diag(var_k)), whose law at every level of a Gaussian path is known.

    At a level with (alpha, sigma) it is the mixture of N(alpha mu_k, alpha^2 var_k + sigma^2).

    Args:
        means: `[K, d]`.
        variances: `[K, d]`, `[K, 1]` or a number, positive; along the axes.
        weights: `[K]`, positive, normalised here; equal when None.

    Attributes:
        means, variances: float64 `[K, d]`. weights: float64 `[K]`.

    Raises:
        ValueError: shapes that do not fit, or variances or weights that are not positive.
    """

    def __init__(
        self, means: Tensor, variances: Tensor | float, weights: Tensor | None = None
    ) -> None:
        self.means = torch.as_tensor(means, dtype=torch.float64)
        if self.means.dim() != 2:
            raise ValueError(f"means must be [K, d], got shape {list(self.means.shape)}")
        modes, d = self.means.shape
        variances = torch.as_tensor(variances, dtype=torch.float64)
        try:
            self.variances = variances.expand(modes, d).clone()
        except RuntimeError:
            raise ValueError(
                f"variances must be [{modes}, {d}], [{modes}, 1] or a number, got shape "
                f"{list(variances.shape)}"
            ) from None
        weights = (
            torch.ones(modes, dtype=torch.float32) if weights is None else torch.as_tensor(weights)
        )
        if weights.shape != (modes,):
            raise ValueError(f"weights must be [{modes}], got shape {list(weights.shape)}")
        if not bool((weights > 0).all()) or not bool((self.variances > 0).all()):
            raise ValueError("weights and variances must be positive")
        self.weights = weights.double() / weights.double().sum()

    def mean(self) -> Tensor:
        """float64 `[d]`."""
        return self.weights @ self.means

    def variance(self) -> Tensor:
        """Marginal variances, float64 `[d]`."""
        second = self.weights @ (self.variances + self.means**2)
        return second - self.mean() ** 2

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """`n` exact draws, float64 `[n, d]`."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[k] + self.variances[k].sqrt() * noise

    def _log_joint(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log w_k N(x; component k at the level) up to 2 pi `[B, K]`, residual and variance."""
        alpha, sigma = alpha.reshape(-1, 1, 1), sigma.reshape(-1, 1, 1)
        variance = alpha**2 * self.variances + sigma**2
        residual = x[:, None, :] - alpha * self.means
        energy = (residual**2 / variance + variance.log()).sum(-1)
        return self.weights.log() - 0.5 * energy, residual, variance

    def log_density(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Log-density at a level up to (d / 2) log 2 pi; shapes as in `data_prediction`."""
        return self._log_joint(x.double(), alpha.double(), sigma.double())[0].logsumexp(-1)

    def responsibilities(self, x: Tensor) -> Tensor:
        """The probability of each component given data x `[B, d]`, float64 `[B, K]`."""
        one = torch.ones(1, dtype=torch.float64)
        return self._log_joint(x.double(), one, 0 * one)[0].softmax(-1)

    def data_prediction(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x] at a level: x `[B, d]`, alpha and sigma `[B]` or `[1]` -> float64 `[B, d]`."""
        x, alpha, sigma = x.double(), alpha.double(), sigma.double()
        if alpha.numel() == sigma.numel() == 1:
            return self._data_prediction_at(x, alpha.reshape(()), sigma.reshape(()))
        log_joint, residual, variance = self._log_joint(x, alpha, sigma)
        gain = alpha.reshape(-1, 1, 1) * self.variances / variance
        return (log_joint.softmax(-1).unsqueeze(-1) * (self.means + gain * residual)).sum(1)

    def _data_prediction_at(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The same for one level, as matrix products over the modes."""
        variance = alpha**2 * self.variances + sigma**2
        precision, centre = 1 / variance, alpha * self.means
        constant = self.weights.log() - 0.5 * (centre**2 * precision + variance.log()).sum(-1)
        log_joint = constant + x @ (centre * precision).T - 0.5 * (x * x) @ precision.T
        gain = alpha * self.variances * precision
        share = log_joint.softmax(-1)
        return share @ (self.means - gain * centre) + x * (share @ gain)

    def model(
        self, path: str | Path, prediction: str, *, row_by_row: bool = False
    ) -> Callable[[Tensor, Tensor, Any], Tensor]:
        """The exact denoiser ``model(x, level, condition)`` of a path and prediction type.

        It computes in float64 on the CPU and returns float32; the condition is not used. With
        `row_by_row` each row is computed on its own, so that its bits do not depend on the batch.
        """
        path = get_path(path)
        check_prediction(prediction)

        def evaluate(x: Tensor, level: Tensor) -> Tensor:
            if len(level) and bool((level == level[0]).all()):
                level = level[:1]
            times = level.double().numpy()
            alpha = torch.from_numpy(path.alpha(times)).reshape(-1)
            sigma = torch.from_numpy(path.sigma(times)).reshape(-1)
            x0 = self.data_prediction(x, alpha, sigma)
            out = output_from_data(prediction, alpha[:, None], sigma[:, None], x.double(), x0)
            return out.float()

        def model(x: Tensor, level: Tensor, condition: Any = None) -> Tensor:
            if not row_by_row:
                return evaluate(x, level)
            out = torch.empty(x.shape, dtype=torch.float32)
            for i in range(len(x)):
                out[i] = evaluate(x[i : i + 1].clone(), level[i : i + 1].clone())[0]
            return out

        return model


def random_mixture(seed: int) -> GaussianMixture:
    """One of three kinds of mixture, drawn by `seed` (its remainder by 3 is the kind).

    Centres are uniform on the unit sphere and weights U[.3, 1.3], normalised. Kind 0: 8 modes in
    d = 2, each of one std U[.05, .3]. Kind 1: 6 modes of std .1 in d = 10. Kind 2: 6 modes in
    d = 64, std U[.02, .3] along each axis.
    """
    generator = torch.Generator().manual_seed(seed)
    modes, d = ((8, 2), (6, 10), (6, 64))[seed % 3]
    means = torch.randn(modes, d, generator=generator, dtype=torch.float64)
    weights = 0.3 + torch.rand(modes, generator=generator, dtype=torch.float64)
    spread = torch.rand(modes, 1 if d == 2 else d, generator=generator, dtype=torch.float64)
    if d == 2:
        std = 0.05 + 0.25 * spread
    else:
        std = torch.full_like(spread, 0.1) if d == 10 else 0.02 + 0.28 * spread
    return GaussianMixture(means / means.norm(dim=1, keepdim=True), std**2, weights)
