"""The metrics of the study against closed forms, and that each sees the fault it is there for.

The samples are of fixed seeds; a bound on the difference of a metric from its exact value is at
least six of its standard deviations over 200 seeds, so that a false alarm is below 1e-6.
"""

from __future__ import annotations

import math

import pytest
import torch

from ardiff.data.mixture import GaussianMixture, random_mixture
from ardiff.study.metrics import (
    ExactMMD,
    Judge,
    Sliced,
    energy_distance,
    mode_weights,
    unit_directions,
    within_variance,
)

N = 4000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def judge(mixture: GaussianMixture, samples: int = N) -> Judge:
    g = generator(5)
    draws = [mixture.sample(samples * 10, g), *[mixture.sample(samples, g) for _ in range(4)]]
    return Judge(draws, samples, 5, mixture)


def test_sliced_distances_of_a_shift():
    """Equal samples moved by m: on a direction u both distances are |m.u|."""
    d = 3
    directions = unit_directions(d, generator())
    draws = torch.randn(N, d, generator=generator(1), dtype=torch.float64)
    sliced, shift = Sliced(directions, draws, N), torch.tensor([0.3, -0.2, 0.6]).double()
    moved = (shift @ directions).abs()
    assert sliced.w1(draws + shift) == pytest.approx(float(moved.mean()), rel=1e-9)
    assert sliced.w2(draws + shift) == pytest.approx(float(moved.square().mean().sqrt()), rel=1e-9)
    assert sliced.w2(draws) == 0.0


def test_energy_distance_of_points():
    x = torch.tensor([[0.0], [1.0]])
    y = torch.tensor([[3.0]])
    # 2 * 2.5 - 0.5 - 0
    assert energy_distance(x, y) == pytest.approx(math.sqrt(4.5))
    assert energy_distance(x, x) == 0.0


def test_the_exact_terms_of_the_mmd_are_those_of_draws():
    mixture = random_mixture(4)
    found = ExactMMD(mixture)
    x, y = mixture.sample(3000, generator(1)) + 0.3, mixture.sample(3000, generator(2))
    total = float(mixture.variance().sum())

    def kernel(a, b):
        square = torch.cdist(a, b).square()
        return sum(torch.exp(-square / (2 * total * h)).mean() for h in (1 / 64, 1 / 8, 1)) / 3

    by_draws = (kernel(x, x) - 2 * kernel(x, y) + kernel(y, y)).sqrt()
    assert found(x) == pytest.approx(float(by_draws), abs=0.01)
    assert found(y) < 0.03 < 0.1 < found(x)


def test_mode_weights_and_within_variance():
    """Modes far apart: what is drawn with other weights and widths is told exactly."""
    means = torch.tensor([[-5.0, 0.0], [5.0, 0.0]])
    mixture = GaussianMixture(means, 0.25, torch.tensor([0.5, 0.5]))
    other = GaussianMixture(means, 0.25 * 0.8, torch.tensor([0.3, 0.7]))
    x = other.sample(200_000, generator())
    assert mode_weights(mixture, x) == pytest.approx(0.2, abs=0.007)
    assert within_variance(mixture, x) == pytest.approx(0.8, abs=0.012)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_exact_draws_are_at_the_floor_and_faults_above_it(seed):
    """Draws of another seed are within six of the floor's deviations of it or below; a wrong width,
    a shift and wrong weights are each above, in the metric that is there to see it."""
    mixture = random_mixture(seed)
    of = judge(mixture)
    exact = of(mixture.sample(N, generator(99)))
    for name in ("sliced_w2", "sliced_w1", "energy", "mmd", "mode_weights"):
        assert exact[name] < of.floor[name] + 6 * max(of.spread[name], 0.3 * of.floor[name]), name
    narrow = GaussianMixture(mixture.means, 0.8 * mixture.variances, mixture.weights.float())
    seen = of(narrow.sample(N, generator(7)))
    assert abs(seen["within_variance"] - 0.8 * exact["within_variance"]) < 0.05
    shifted = of(mixture.sample(N, generator(7)) + 0.5 / mixture.means.shape[1] ** 0.5)
    assert min(shifted[name] / of.floor[name] for name in ("sliced_w2", "sliced_w1", "energy")) > 3
    weights = mixture.weights.clone()
    weights[0] += 0.3
    other = GaussianMixture(mixture.means, mixture.variances, weights.float())
    assert of(other.sample(N, generator(7)))["mode_weights"] > 6 * of.floor["mode_weights"]


def test_samples_that_are_not_finite_are_infinitely_far():
    mixture = random_mixture(3)
    of = judge(mixture, 500)
    x = mixture.sample(500, generator())
    x[3, 0] = math.nan
    assert set(of(x).values()) == {math.inf}
