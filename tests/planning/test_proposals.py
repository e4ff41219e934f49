"""The predicted log acceptance ratio is that of the proposal, on linear gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import ardiff
from ardiff.planning.proposals import SCALES, Leapfrog, ladder, leapfrog, log_acceptance

D, B = 5, 7
GENERATOR = torch.Generator().manual_seed(0)
H = torch.randn(B, D, D, generator=GENERATOR, dtype=torch.float64)
H = H @ H.mT / D  # symmetric, positive
Z, V = torch.randn(2, B, D, generator=GENERATOR, dtype=torch.float64)


def times(x, count=1):
    for _ in range(count):
        x = torch.einsum("bij,bj->bi", H, x)
    return x


def vectors(count):
    return [times(start, k) for start in (times(Z), V) for k in range(count + 1)]


def energy(z, v):
    return ((z * times(z)).sum(1) + (v * v).sum(1)) / 2


@pytest.mark.parametrize("tau", [0.1, 0.7, 1.5])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_of_leapfrog_steps(steps, tau):
    """-dH by the steps themselves; with another drift, the control, it is another."""
    z, v = Z, V
    for _ in range(steps):
        v = v - tau / 2 * times(z)
        z = z + tau * v
        v = v - tau / 2 * times(z)
    right = energy(Z, V) - energy(z, v)
    found, other = log_acceptance(
        [Leapfrog(tau / 2, tau, steps), Leapfrog(tau / 2, 1.1 * tau, steps)], vectors(steps)
    )
    torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)
    assert float((other - right).abs().max()) > 1e-3


@pytest.mark.parametrize("tau", [0.05, 0.4, 1.2])
def test_of_mala(tau):
    """The log ratio of MALA as Huang et al. 2024, Algorithm 2, have it."""
    gradient = times(Z)
    y = Z - tau * gradient + math.sqrt(2 * tau) * V
    back = (Z - y + tau * times(y)).square().sum(1)
    ahead = (y - Z + tau * gradient).square().sum(1)
    right = ((Z * times(Z)).sum(1) - (y * times(y)).sum(1)) / 2 + (ahead - back) / (4 * tau)
    (found,) = log_acceptance([leapfrog("rtk-mala", tau, {})], vectors(1))
    torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "solver, options",
    [
        ("rtk-mala", {}),
        ("rtk-hmc", {"leapfrog": 3}),
        ("rtk-harmonic-mala", {"window_low": 0.0, "window_high": 1e9}),
    ],
)
def test_the_moves_are_those_of_the_tables(solver, options):
    """The acceptance of the first proposal of a run on Gaussian data, 4,000 samples: to 5 standard
    errors, 6e-7. A tau 1.5 times as large is told from it."""
    scale, d, tau = 0.25, 20, 1.0
    model = lambda x, level, condition: -x / (scale + level[:, None] ** 2)  # noqa: E731
    levels = [4.0, 0.8, 0.3]
    _, stats = ardiff.sample(
        model, (4000, d), "edm", "score", solver, 20, grid=levels, stages=2, inner=1, tau=tau,
        seed=1, return_stats=True, **options,
    )  # fmt: skip
    from ardiff.tables.paths import transition

    t = transition("edm", *levels[:2])
    x = 4.0 * torch.randn(4000, d, generator=GENERATOR, dtype=torch.float64)
    on = 1 - t.s2 / t.sigma_a**2 * t.sigma_a**2 / (scale + t.sigma_a**2)
    z = on * x + t.width * torch.randn(4000, d, generator=GENERATOR, dtype=torch.float64)
    v = torch.randn(4000, d, generator=GENERATOR, dtype=torch.float64)
    curvature = t.width**2 * (1 / (scale + t.sigma_b**2) + 1 / t.s2)
    gradient = t.width * (z / (scale + t.sigma_b**2) + (z - x) / t.s2)
    for factor in (1.0, 1.5):
        move = leapfrog(solver, factor * tau, options)
        powers = [curvature**k * start for start in (gradient, v) for k in range(move.steps + 1)]
        rates = log_acceptance([move], powers)[0].clamp(max=0).exp()
        error = math.sqrt(2) * float(rates.std()) / math.sqrt(4000)
        off = abs(float(rates.mean()) - float(stats.expected_acceptance[0]))
        assert (off < 5 * error) == (factor == 1), (off, error)


def test_the_ladder():
    taus = ladder("rtk-mala", {"tau": 0.5})
    assert taus[SCALES.index(1.0)] == 0.5 and len(taus) == len(SCALES)
    assert max(ladder("rtk-harmonic-mala", {})) < math.pi
    assert ladder("rtk-hmc", {"dim": 10_000})[0] < ladder("rtk-hmc", {})[0]
    with pytest.raises(ValueError, match="ddim has no tau"):
        ladder("ddim", {})
    with pytest.raises(ValueError, match="rtk-ula makes no proposals"):
        leapfrog("rtk-ula", 0.1, {})
    assert np.all(np.diff(SCALES) > 0)
