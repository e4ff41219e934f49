"""The maps of kinetic steps are those of the tables, and the settings follow the curvature."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ardiff
from ardiff.data.mixture import GaussianMixture
from ardiff.guide import Guidance
from ardiff.loop.ladder import stage_of_rows
from ardiff.noise import make_key, make_stream
from ardiff.planning.calibration import StageSetting
from ardiff.planning.kinetic import KineticTable, _offset, enough_stages
from ardiff.planning.model_score import Score
from ardiff.planning.stability import KINETIC, spectral_radius
from ardiff.planning.stage_probe import probes
from ardiff.tables.paths import get_path


def table_of(solver, path="ou", prediction="score", **options):
    options = {"steps": 400, "stages": 3, "inner": 120, "gamma": 2.0, **options}
    table = ardiff.solver(solver, path=path, prediction=prediction, **options)
    return KineticTable(table, path)


@pytest.mark.parametrize(
    "gamma, tau, curvature, moment",
    [
        (2.0, 0.1, 1.0, 1.0256192143605),
        (2.0, 0.5, 1.0, 1.1398065486758),
        (5.0, 0.3, 2.0, 1.0630029207589),
    ],
)
@pytest.mark.parametrize(
    "path, prediction", [("ou", "score"), ("flow", "flow"), ("vp-linear", "epsilon")]
)
def test_the_stationary_variance_of_uld(path, prediction, gamma, tau, curvature, moment):
    """The discrete law that the exponential integrator has, to ten digits where it is reached."""
    kinetic = table_of("rtk-uld", path, prediction, gamma=gamma, tau=tau)
    found = kinetic.second_moment(kinetic.stages[1], np.array([curvature]), 0.0)
    np.testing.assert_allclose(found, moment, rtol=1e-8 if gamma * tau > 0.5 else 1e-3)
    assert abs(float(found[0]) - 1) > 0.02  # the continuous law is another


@pytest.mark.parametrize("solver, bias", [("rtk-baoab", 0.0), ("rtk-obabo", 1 / 24)])
def test_the_stationary_variance_of_splittings(solver, bias):
    """BAOAB is exact on a Gaussian; OBABO at tau .4 has 1 / (1 - tau^2 / 4)."""
    kinetic = table_of(solver, tau=0.4)
    (found,) = kinetic.second_moment(kinetic.stages[0], np.array([1.0]), 0.0)
    assert abs(found - 1 - bias) < 1e-6


@pytest.mark.parametrize("solver", KINETIC)
@pytest.mark.parametrize("inner", [1, 3])
def test_the_second_moment_of_a_run(solver, inner):
    """Of the states after two stages, 200,000 samples of Gaussian data: to 5 standard errors, 6e-7.
    From a start that is off its kernel, the control, it is another.

    The ancestral step has the mean of its kernel here, gain x_a, and the kernel the variance
    1 / (1 / (scale + sigma_b^2) + 1 / s^2).
    """
    scale, n = 0.3, 200_000

    def model(x, level, condition):
        return -x / (scale + level[:, None] ** 2)

    table = ardiff.solver(
        solver, path="edm", prediction="score", steps=20, grid=[4.0, 1.0, 0.4], stages=2,
        inner=inner, tau=0.7, gamma=1.5, denoise_last=False,
    )  # fmt: skip
    kinetic, expected, other = KineticTable(table, "edm"), table.init_scale**2, 0.0
    for stage in kinetic.stages:
        t = stage.t
        variance = 1 / (1 / (scale + t.sigma_b**2) + 1 / t.s2)
        curvature = np.array([t.width**2 / variance])
        right, wrong = (
            float(kinetic.second_moment(stage, curvature, offset)[0]) for offset in (0.0, 0.5)
        )
        gain = (scale + t.sigma_b**2) / (scale + t.sigma_a**2)
        other = gain**2 * expected + variance * wrong
        expected = gain**2 * expected + variance * right
    x = ardiff.sample(model, (n, 1), table=table, seed=1)
    error = 5 * expected * np.sqrt(2 / n)
    found = float(x.double().square().mean())
    assert abs(found - expected) < error and abs(found - other) > error


def test_the_spectral_radius():
    """Of ULD by its formula, below 1; of a step too long for its curvature above."""
    kinetic = table_of("rtk-uld", tau=0.4)
    found = spectral_radius(kinetic.matrices(kinetic.stages[2], np.array([1.0]))[0])
    x = 0.8
    a, b = 1 - np.exp(-x), x - 1 + np.exp(-x)
    step = np.array([[1 - b / 4, a / 2], [-a / 2, np.exp(-x)]])
    assert abs(found - np.abs(np.linalg.eigvals(step)).max()) < 1e-9
    assert spectral_radius(kinetic.matrices(kinetic.stages[2], np.array([1.0, 80.0]))[0]) > 1


@pytest.mark.parametrize("solver", KINETIC)
def test_the_rows_of_a_stage(solver):
    table = ardiff.solver(solver, path="flow", prediction="flow", steps=13, stages=4, inner=2)
    stages = stage_of_rows(table)
    np.testing.assert_array_equal(stages, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3])


def settings_of(variance, solver="rtk-baoab", steps=32, d=4, **options):
    model = GaussianMixture(torch.zeros(1, d), variance).model("edm", "sample")
    return model, ardiff.calibrate(
        model, d, path="edm", prediction="sample", solver=solver, steps=steps, **options
    )


@pytest.mark.parametrize("solver", KINETIC)
def test_a_gaussian_is_drawn_better(solver):
    """The variance of 40,000 x 4 samples of N(0, 1): calibrated it is off by less than half of what
    it is with the solver's own gamma and tau, by more than 12 standard errors of .0035."""
    model, found = settings_of(torch.ones(1, 4), solver)
    options = {"path": "edm", "prediction": "sample", "solver": solver, "steps": 32}

    def off(**options):
        x = ardiff.sample(model, (40_000, 4), seed=2, **options)
        return abs(float(x.double().square().mean()) - 1)

    ours, default = off(table=found.table), off(**options)
    assert ours < 0.5 * default and default - ours > 12 * 0.0035, (ours, default)
    assert all(stage.radius < 1 for stage in found.stages)


def test_gamma_follows_the_lowest_curvature():
    """2 l^1/2 to half a rung of 2^1/4, of l between 1 (data of no width) and k; and the calls."""
    model, found = settings_of(torch.ones(1, 4))
    for stage in found.stages:
        assert abs(np.log2(stage.gamma / (2 * stage.lowest**0.5))) < 0.13, stage
    assert found.stages[0].gamma == 2.0 and found.stages[-1].gamma < 1.5
    stages = len(found.stages)
    assert found.calls == found.probe_calls == stages * (2 + 2 * 2 + 2) and found.runs == 0
    assert found.target is found.acceptance is None
    assert "gamma" in str(found) and "accepted" not in str(found)
    assert found.table.calls <= 32


def test_the_number_of_stages_follows_the_curvature():
    """Of steps for many stages only those that the theory asks for are taken, the rest are inner
    steps; a number that is given stays."""
    _, found = settings_of(torch.ones(1, 4), steps=200)
    table = found.table
    assert 8 < len(found.stages) < 40 and 150 < table.calls <= 200
    _, given = settings_of(torch.ones(1, 4), steps=200, inner=2)
    assert len(given.stages) == 66
    _, steep = settings_of(1e-4 * torch.ones(1, 4), steps=200)
    assert len(steep.stages) > len(found.stages)


def test_the_stages_that_the_theory_asks_for():
    """L = 1/2 on the Ornstein-Uhlenbeck path: stages of log(2) / 2; with 2 L half as long or so."""
    path = get_path("ou")

    def stages(curvature):
        return [
            StageSetting(float(level), 1.0, 1.0, curvature, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0)
            for level in (np.log(2) / 2 * np.array([6.999, 3.0, 1.0]))
        ]

    assert enough_stages(stages(0.5), path) == 7
    assert enough_stages(stages(5.0), path) == 1 + int(np.ceil(5.999 * np.log(2) / np.log(1.1)))


def test_the_start_of_a_stage_is_known():
    """In 200 dimensions, where it is known well: the ancestral step begins at its kernel's mean on
    a Gaussian, the Gaussian factor does not, and both have the noise that they add."""
    model = GaussianMixture(torch.zeros(1, 200), 1.0).model("edm", "sample")
    levels, path = np.array([4.0, 2.0, 1.0]), get_path("edm")
    found = {}
    for start in ("ancestral", "gaussian-factor"):
        score = Score(model, (16, 200), path, "sample", None, Guidance())
        key, stream = make_key(0, "cpu"), make_stream(range(16), 16, 0, "cpu")
        looks = probes(score, path, levels, levels, key, stream, 200, start, 2, 1)
        found[start] = [_offset(look, start) for look in looks]
    assert max(found["ancestral"]) < 0.15
    for offset, look in zip(found["gaussian-factor"], looks, strict=True):
        t = look.t
        gain = (1 + t.sigma_b**2) / (1 + t.sigma_a**2)  # of the kernel's mean; that of the start: 1
        right = (1 - gain) ** 2 * (1 + t.sigma_a**2) / t.width**2
        assert abs(offset / right - 1) < 0.25, (offset, right)


@pytest.mark.parametrize("option", ["tau", "gamma"])
def test_what_it_picks_is_not_taken(option):
    with pytest.raises(ValueError, match=f"calibrate picks {option} of rtk-uld itself"):
        settings_of(torch.ones(1, 4), "rtk-uld", **{option: 1.0})


def test_a_curvature_on_which_nothing_is_stable(recwarn):
    """A score 1e7 times as steep as its level allows: the report says so, and the table exists."""

    def model(x, level, condition):
        return -1e7 * x / level[:, None] ** 2

    found = ardiff.calibrate(
        model, 2, path="edm", prediction="score", solver="rtk-uld", steps=10,
        grid=[2.0, 1.5, 1.0, 0.7],
    )  # fmt: skip
    assert "no tau is stable" in str(found)
