"""The papers' targets: their modes, and that they are what their docstrings say."""

from __future__ import annotations

import math

import pytest
import torch

from ardiff.study.targets import PAPER, TARGETS

MODES = {"circle-6": 6, "circle-18": 18, "chessboard": 8, "spiral": 16}
VARIANCE = {"circle-6": 0.05, "circle-18": 0.007, "chessboard": 0.007, "spiral": 0.007}


def nearest(name):
    """Distances of each mode to the nearest other, in standard deviations."""
    mixture = TARGETS[name]()
    apart = torch.cdist(mixture.means, mixture.means).fill_diagonal_(math.inf).min(1).values
    return apart / VARIANCE[name] ** 0.5


@pytest.mark.parametrize("name", PAPER)
def test_modes_are_equal_round_and_in_a_plane(name):
    mixture = TARGETS[name]()
    assert mixture.means.shape == (MODES[name], 10)
    assert not mixture.means[:, 2:].any()
    assert torch.equal(mixture.variances, torch.full_like(mixture.means, VARIANCE[name]))
    torch.testing.assert_close(mixture.weights, torch.full_like(mixture.weights, 1 / MODES[name]))


@pytest.mark.parametrize("name", ["circle-6", "circle-18"])
def test_circles_are_even(name):
    torch.testing.assert_close(TARGETS[name]().means.norm(dim=1), torch.ones(MODES[name]).double())
    chord = 2 * math.sin(math.pi / MODES[name]) / VARIANCE[name] ** 0.5
    torch.testing.assert_close(nearest(name), torch.full((MODES[name],), chord).double())


def test_the_chessboard_has_its_black_squares():
    means = TARGETS["chessboard"]().means
    torch.testing.assert_close(means.mean(0), torch.zeros(10).double(), rtol=0, atol=1e-12)
    squares = (means[:, :2] - means[:, :2].min(0).values) * 4
    assert {(round(x), round(y)) for x, y in squares.tolist()} == {
        *((0, 0), (0, 2), (1, 1), (1, 3)),
        *((2, 0), (2, 2), (3, 1), (3, 3)),
    }
    assert float((squares - squares.round()).abs().max()) < 1e-12
    diagonal = 0.25 * 2**0.5 / 0.007**0.5
    torch.testing.assert_close(nearest("chessboard"), torch.full((8,), diagonal).double())


def test_the_spiral_makes_two_turns():
    x, y = TARGETS["spiral"]().means[:, :2].T
    along = torch.arange(16, dtype=torch.float64) / 15
    torch.testing.assert_close(torch.hypot(x, y), along)
    turned = torch.atan2(y, x)[1:] - 4 * math.pi * along[1:]
    whole = (turned / (2 * math.pi)).round()
    torch.testing.assert_close(turned, 2 * math.pi * whole, rtol=0, atol=1e-12)
    assert whole.unique().tolist() == [-2, -1, 0]
