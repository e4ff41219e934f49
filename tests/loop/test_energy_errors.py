"""The energy errors of proposals, on Gaussian data: a leapfrog step is a matrix, and dH a quadratic
form of normals, whose law is known.

A stage starts at z = m + w q, q ~ N(0, I), and its kernel is N(m, w^2 / l), wider by what the data
leave open. In units of w a leapfrog step of tau is

    M = [[1 - l tau^2 / 2, tau], [-l tau (1 - l tau^2 / 4), 1 - l tau^2 / 2]]

on (q, v), and 2 dH = z^T A z, A = M^T E M - E, E = diag(l, 1), z of 2 normals for each element.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import ardiff
from ardiff.loop.stats import EnergyErrors
from ardiff.tables.paths import get_path, transition

PATH, D, B = "edm", 4, 20_000
Z = 6.0  # standard errors: 1e-6 among 108 figures, with room for their tails


def run(solver, variance, score_scale=1.0, twist=0.0, **options):
    """The energy errors of a run on data N(0, variance), one proposal a stage."""
    turn = torch.eye(D).roll(1, 0) - torch.eye(D).roll(-1, 0)  # antisymmetric: no gradient

    def model(x, level, condition):
        x0 = variance / (variance + level[:, None] ** 2) * x * score_scale
        return x0 + twist * level[:, None] * x @ turn

    _, stats = ardiff.sample(
        model, (B, D), PATH, "sample", solver, seed=3, ratio_max=8.0, ratio_min=0.1,
        return_stats=True, **{"steps": 9, "stages": 4, "inner": 1} | options,
    )  # fmt: skip
    assert int(stats.energy_errors.stage.bincount().min()) == B
    return stats.energy_errors


def law(variance, tau, leapfrog) -> list[np.ndarray]:
    """A of each stage."""
    found = []
    for a, b in zip(np.geomspace(8, 0.1, 5)[:-1], np.geomspace(8, 0.1, 5)[1:], strict=True):
        t = transition(get_path(PATH), a, b)
        left = variance * a**2 / (variance + a**2)  # variance of x0 given x_a
        curvature = 1 / (1 + (t.alpha_b * t.s2 / t.sigma_a**2) ** 2 * left / t.width**2)
        c, energy = 1 - curvature * tau**2 / 2, np.diag([curvature, 1.0])
        step = np.array([[c, tau], [-curvature * tau * (1 - curvature * tau**2 / 4), c]])
        moved = np.linalg.matrix_power(step, leapfrog)
        found.append(moved.T @ energy @ moved - energy)
    return found


def mean_of_exponential(a: np.ndarray, power: float = 1.0) -> float:
    """Of e^(-power dH), infinite where the integral diverges."""
    least = np.linalg.eigvalsh(np.eye(2) + power * a).min()
    return np.linalg.det(np.eye(2) + power * a) ** (-D / 2) if least > 0 else math.inf


CASES = {  # solver, tau, steps of a trajectory, the leapfrog step that it is
    "hmc": ("rtk-hmc", {"tau": 0.7, "leapfrog": 1}, 1, 0.7),
    "hmc of 3": ("rtk-hmc", {"tau": 0.5, "leapfrog": 3, "steps": 17}, 3, 0.5),
    "mala": ("rtk-mala", {"tau": 0.3}, 1, math.sqrt(0.6)),
}


@pytest.mark.parametrize("variance", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("case", CASES)
def test_dh_has_the_law_of_the_leapfrog(case, variance):
    """And the mean of e^-dH is 1 where the start is the kernel, the data a point; else not."""
    solver, options, leapfrog, tau = CASES[case]
    errors = run(solver, variance, **options)
    forms = law(variance, tau, leapfrog)
    mean = np.array([D * np.trace(a) / 2 for a in forms])
    spread = np.array([D * np.trace(a @ a) / 2 for a in forms])
    fourth = np.array([3 * D * np.trace(np.linalg.matrix_power(a, 4)) for a in forms])  # cumulant
    assert (np.abs(errors.mean().numpy() - mean) < Z * np.sqrt(spread / B)).all()
    each = [errors.values[errors.stage == stage].double() for stage in range(len(forms))]
    off = np.array([float(dh.var()) for dh in each]) - spread
    assert (np.abs(off) < Z * np.sqrt((fourth + 2 * spread**2) / B)).all()
    wanted = np.array([mean_of_exponential(a) for a in forms])
    variances = np.array([mean_of_exponential(a, 2.0) for a in forms]) - wanted**2
    assert np.isfinite(variances).all()
    found, error = (each.numpy() for each in errors.mean_exp())
    assert (np.abs(found - wanted) < Z * np.sqrt(variances / B)).all()
    np.testing.assert_allclose(error, np.sqrt(variances / B), rtol=0.5)
    if variance == 0:
        np.testing.assert_allclose(wanted, 1, rtol=1e-12)
    else:
        assert np.abs((found - 1) / error).max() > 2 * Z


@pytest.mark.parametrize("wrong", [{"score_scale": 0.7}, {"twist": 0.15}])
def test_a_wrong_score_is_another_law(wrong):
    """The control: the exact law is rejected of a score that is shrunk, or no gradient."""
    solver, options, leapfrog, tau = CASES["hmc"]
    errors = run(solver, 0.5, **wrong, **options)
    wanted = np.array([mean_of_exponential(a) for a in law(0.5, tau, leapfrog)])
    found, error = (each.numpy() for each in errors.mean_exp())
    assert np.abs((found - wanted) / error).max() > 2 * Z


def test_the_rotation_of_the_known_gaussian_has_no_error():
    """Data that are a point leave no residual force: the rotation of rtk-harmonic-mala is exact."""
    errors = run("rtk-harmonic-mala", 0.0, window_low=0.0, window_high=100.0)
    assert float(errors.values.abs().max()) < 1e-3
    assert float(run("rtk-hmc", 0.0, tau=1.2, leapfrog=1).values.abs().max()) > 1


def test_quantiles_are_of_each_stage():
    errors = EnergyErrors(torch.arange(12.0), torch.tensor([0, 1, 3]).repeat(4), 4)
    wanted = [[0.0, 4.5, 9.0], [1.0, 5.5, 10.0], [math.nan] * 3, [2.0, 6.5, 11.0]]
    found = errors.quantiles([0, 0.5, 1])
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=found.dtype), equal_nan=True)
    with pytest.raises(ValueError, match=r"quantiles are numbers in \[0, 1\], got \[1.5\]"):
        errors.quantiles([1.5])


def test_solvers_without_proposals_have_none():
    _, stats = ardiff.sample(
        lambda x, level, condition: 0 * x, (2, 3), PATH, "sample", "rtk-uld", 9, return_stats=True
    )
    assert stats.energy_errors is None
