"""Metropolised solvers on a line: the trapezoidal rule has a bias, Simpson's and energies do not.

The statistic is sum over 64 bins of equal mass of (count - n / 64)^2 / (n / 64), chi-square with 63
degrees of freedom for exact draws: above CHI = 160 with probability 3e-10, so that the tests that
demand less have a false-alarm rate below 1e-8 if the sampler is exact. It is not: at 512 calls a
bias of a thousandth is left, which at 20,000 chains adds about 20 x 1e-6 x 4 to the mean of 63, for
which there is room. The trapezoid, and the same solver with too few calls, are the controls.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from ardiff.study import adjusted
from ardiff.tables.paths import get_path

CHAINS, CHI = 20_000, 160.0


def chi_square(x):
    counts = np.bincount(np.searchsorted(adjusted.inner_edges(), x.double().numpy().ravel()))
    mean = x.numel() / adjusted.BINS
    return float(((counts - mean) ** 2 / mean).sum())


@pytest.mark.parametrize(
    ("rule", "calls", "exact"),
    [
        ("simpson", 512, True),
        ("energy", 512, True),
        ("trapezoid", 512, False),
        ("energy", 32, False),
    ],
)
def test_energies_and_simpson_reach_the_target_and_the_trapezoid_does_not(rule, calls, exact):
    x, row = adjusted.draw("rtk-hmc", rule, calls, CHAINS, seed=3)
    assert row["made"] <= calls and 0.5 < row["acceptance"] < 1
    assert (chi_square(x) < CHI) == exact


def test_the_bins_hold_equal_masses_and_the_distance_is_total_variation():
    edges = adjusted.inner_edges()
    mass = np.diff(adjusted.distribution(edges), prepend=0, append=1)
    np.testing.assert_allclose(mass, 1 / adjusted.BINS, atol=1e-12)
    draws = adjusted.target().sample(CHAINS, torch.Generator().manual_seed(0))
    assert chi_square(draws) < CHI < chi_square(draws * 1.05)
    middles = np.concatenate([[edges[0] - 1], (edges[1:] + edges[:-1]) / 2, [edges[-1] + 1]])
    half = torch.tensor(middles[: adjusted.BINS // 2])
    assert math.isclose(adjusted.total_variation(half, edges), 0.5)
    assert adjusted.total_variation(torch.tensor(middles), edges) < 1e-12


@pytest.mark.parametrize("level", [1e-3, 0.2, 2.5])
def test_the_fast_model_is_that_of_the_mixture(level):
    x, line = torch.linspace(-2.5, 2.5, 101)[:, None], adjusted.Line()
    at, path = torch.full((101,), level), get_path(adjusted.PATH)
    wanted = adjusted.target().model(adjusted.PATH, adjusted.PREDICTION)(x, at, None)
    torch.testing.assert_close(line.model(x, at, None), wanted, atol=2e-5, rtol=0)
    both = torch.cat([x, x.flip(0)], 1)  # coordinates are independent
    assert torch.equal(line.model(both, at, None)[:, 1:], line.model(x.flip(0), at, None))
    energies = line.energy(x, at, None), line.energy(x.flip(0), at, None)
    torch.testing.assert_close(line.energy(both, at, None), sum(energies))
    alpha, sigma = (torch.tensor([f(level)]) for f in (path.alpha, path.sigma))
    density = adjusted.target().log_density(x, alpha, sigma)
    found = line.energy(x, at, None).double() + density
    assert float((found - found[0]).abs().max() / density.abs().max()) < 1e-6


def test_the_cut_is_plain_data_and_its_page_has_every_row():
    told = []
    found = adjusted.run(0, True, told.append)
    assert json.loads(json.dumps(found)) == found
    assert len(told) == len(found["rows"]) == 6 and "rtk-hmc, energy, 512 calls" in told
    met = found["met"]["rtk-hmc"]
    assert met["trapezoid_over_floor"] > 1.3 and met["energy"] and met["simpson"]
    text = adjusted.markdown(found)
    assert text.count("| `rtk-hmc` |") == 3
    for row in found["rows"]:
        assert f"{row['over_floor']:.2f}" in text
        assert math.isclose(row["over_floor"], row["tv"] / found["floors"]["20000"]["mean"])
