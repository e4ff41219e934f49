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

import pytest
import torch

from ardiff.study import adjusted, line
from ardiff.study.text import figure

CHAINS, CHI = 20_000, 160.0


def chi_square(x):
    mean = x.numel() / line.BINS
    return float(((line.counts(x) - mean) ** 2 / mean).sum())


def test_exact_draws_pass_and_wider_ones_do_not():
    draws = line.target().sample(CHAINS, torch.Generator().manual_seed(0))
    assert chi_square(draws) < CHI < chi_square(draws * 1.05)


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


def test_the_cut_is_plain_data_and_its_page_has_every_row():
    found = adjusted.run(0, True)
    assert json.loads(json.dumps(found)) == found
    assert len(found["rows"]) == 6
    met = found["met"]["rtk-hmc"]
    last = {row["accept"]: row["over_floor"] for row in found["rows"] if row["calls"] == 512}
    assert met["trapezoid_over_floor"] == last["trapezoid"]
    assert all(met[rule] == (last[rule] <= adjusted.BOUND) for rule in ("simpson", "energy"))
    text = adjusted.markdown(found)
    assert text.count("| `rtk-hmc` |") == 3
    for row in found["rows"]:
        assert f"| {figure(row['over_floor'])} |" in text
        assert math.isclose(row["over_floor"], row["tv"] / found["floors"]["20000"]["mean"])
