"""The mixture targets: their oracles against each other, and the random instances."""

from __future__ import annotations

import pytest
import torch

from ardiff.data.mixture import random_mixture

SEEDS = (101, 102, 103)


def at(alpha, sigma):
    return torch.tensor([alpha], dtype=torch.float64), torch.tensor([sigma], dtype=torch.float64)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("level", [(1.0, 20.0), (0.7, 0.7), (1.0, 0.05), (0.9, 0.004)])
def test_data_prediction_is_the_derivative_of_the_density(seed, level):
    """Tweedie: alpha E[x0 | x] = x + sigma^2 grad log p(x), by autograd."""
    mixture, (alpha, sigma) = random_mixture(seed), at(*level)
    x = alpha * mixture.sample(5, torch.Generator().manual_seed(0)) + sigma
    x = x.requires_grad_()
    (score,) = torch.autograd.grad(mixture.log_density(x, alpha, sigma).sum(), x)
    expected = (x + sigma**2 * score) / alpha
    found = mixture.data_prediction(x.detach(), alpha, sigma)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=1e-9)
    each = mixture.data_prediction(x.detach(), alpha.expand(5), sigma.expand(5))
    torch.testing.assert_close(each, found, rtol=1e-9, atol=1e-9)


def test_random_mixtures_are_as_described():
    spreads = {2: (8, 0.05, 0.3), 10: (6, 0.1, 0.1), 64: (6, 0.02, 0.3)}
    for seed in range(101, 110):
        mixture = random_mixture(seed)
        modes, d = mixture.means.shape
        count, low, high = spreads[d]
        std = mixture.variances.sqrt()
        assert modes == count and bool((std >= low - 1e-9).all() and (std <= high + 1e-9).all())
        torch.testing.assert_close(mixture.means.norm(dim=1), torch.ones(modes).double())
        assert float(mixture.weights.max() / mixture.weights.min()) < 1.3 / 0.3 + 1e-9
        if d != 64:
            assert torch.equal(std, std[:, :1].expand_as(std))
        assert torch.equal(random_mixture(seed).means, mixture.means)
    assert (
        sorted(random_mixture(s).means.shape[1] for s in range(101, 110))
        == [2] * 3 + [10] * 3 + [64] * 3
    )


def test_exact_draws_have_the_moments():
    """Mean and variance of 40000 draws: z-scores below 6, in 304 comparisons 6e-7 in all."""
    for seed in SEEDS:
        mixture = random_mixture(seed)
        x = mixture.sample(40000, torch.Generator().manual_seed(1))
        score = (x.mean(0) - mixture.mean()) / (mixture.variance() / len(x)).sqrt()
        assert float(score.abs().max()) < 6
        assert float((score + 12).abs().max()) > 6
        torch.testing.assert_close(x.var(0), mixture.variance(), rtol=0.1, atol=0)
