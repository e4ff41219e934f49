"""The default grid of every path is even in log-SNR; on `flow` an even grid of t is far off."""

from __future__ import annotations

import pytest

import ardiff

MEAN, STD, SAMPLES = 0.5, 0.2, 20_000


def velocity(x, t, condition):
    """Of data N(.5, .2^2), exactly."""
    s = t[:, None]
    x0 = MEAN + (1 - s) * STD**2 / ((1 - s) ** 2 * STD**2 + s**2) * (x - (1 - s) * MEAN)
    return (x - x0) / s.clamp(min=1e-6)


def width(solver, **options):
    x = ardiff.sample(
        velocity, (SAMPLES, 1), path="flow", prediction="flow", solver=solver, steps=30, seed=0,
        **options,
    )  # fmt: skip
    return float(x.std())


@pytest.mark.parametrize("solver", ["rtk-harmonic", "rtk-hybrid", "dpmpp-2m", "unipc"])
def test_the_default_grid_gives_the_width_of_the_data(solver):
    """A width has a standard error of .0010: the bound is 6 of them, false alarm 2e-9 each, and
    .004 for the bias of 30 calls. An even grid of t is the control."""
    assert abs(width(solver) - STD) < 0.010
    assert width(solver) == width(solver, grid="log-snr")
    assert width(solver, grid="uniform") - STD > 0.020
