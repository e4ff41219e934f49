"""What is measured by samples: moments against a Gaussian, and how calls grow.

Of B exact draws 2 B KL is near chi-square with 2 degrees of freedom, one per group of axes: KL
above 16 / B has a chance of e^-16 = 1e-7.
"""

from __future__ import annotations

import pytest
import torch

from ardiff.data.mixture import GaussianMixture
from ardiff.study import sampled_scaling as sampled


def exact_draws(chains: int, dim: int) -> torch.Tensor:
    x = torch.randn(chains, dim, generator=torch.Generator().manual_seed(1))
    x[:, dim // 2 :] /= sampled.CURVATURE**0.5
    return x


@pytest.mark.parametrize("dim", [2, 32])
def test_the_moments_of_exact_draws_are_at_the_floor(dim):
    x = exact_draws(2000, dim)
    assert 0 <= sampled.moments_kl(x) < 16 / 2000
    assert sampled.moments_kl(1.15 * x) > 16 / 2000
    assert sampled.moments_kl(torch.cat([1.2 * x[:, : dim // 2], x[:, dim // 2 :]], 1)) > 16 / 2000


def test_the_model_is_the_targets_score():
    variances = torch.tensor([[1.0, 1.0, 1 / 16, 1 / 16]])
    mixture = GaussianMixture(torch.zeros(1, 4), variances)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    for level in (0.01, 0.3, 2.0):
        at = torch.full((5,), level)
        wanted = mixture.model(sampled.PATH, "score")(x, at, None)
        torch.testing.assert_close(
            sampled.gaussian_model(4)(x, at, None), wanted, rtol=1e-5, atol=1e-6
        )


def test_calls_fall_where_the_best_setting_is():
    curves = [[[8, 1.0], [16, 0.1]], [[8, 0.1], [16, 0.01]], []]
    assert sampled.fewest(curves, 0.1) == 8
    assert 8 < sampled.fewest(curves, 0.03) < 16
    assert sampled.fewest(curves, 1e-3) is None


def test_growth_over_d_eps_and_patches():
    """KL = d^2 / calls^2 at each d, by hand."""
    calls = [2**i for i in range(14)]
    curves = {dim: [[[n, dim**2 / n**2] for n in calls]] for dim in (2, 8, 32)}
    found = sampled.growths(curves, 0)
    bound = 2 * sampled.EPS**2
    for dim, got in zip(found["d"]["x"], found["d"]["calls"], strict=True):
        assert got == pytest.approx(dim / bound**0.5)
    assert found["d"]["fit"]["exponent"] == pytest.approx(1)
    assert found["1/eps"]["fit"]["exponent"] == pytest.approx(1)
    assert found["K"]["x"] == [4, 16, 64]  # of 128 dimensions
    for patches, got in zip(found["K"]["x"], found["K"]["calls"], strict=True):
        assert got == pytest.approx(patches * (128 / patches) / (bound / patches) ** 0.5)
