"""Paths, prediction types and time grids against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ardiff.tables.paths import (
    PATHS,
    PREDICTIONS,
    VPPath,
    data_coefficients,
    get_path,
    output_from_data,
    score_coefficients,
    time_grid,
    transition,
)


@pytest.mark.parametrize("name", PATHS)
def test_level_inverts_ratio(name):
    path = get_path(name)
    low, high = max(path.ratio_min, 1e-5), min(path.ratio_max, 1e4)
    ratio = np.exp(np.linspace(math.log(low), math.log(high), 4001))
    np.testing.assert_allclose(path.ratio(path.level(ratio)), ratio, rtol=1e-11)
    assert np.all(np.diff(path.level(ratio)) > 0)


@pytest.mark.parametrize("name", PATHS)
def test_alpha_sigma_and_ratio_agree(name):
    path = get_path(name)
    level = time_grid(path, 50)
    alpha, sigma = path.alpha(level), path.sigma(level)
    np.testing.assert_allclose(sigma / alpha, path.ratio(level), rtol=1e-12)
    if name == "ou" or name.startswith("vp"):
        np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-14)
    assert alpha.dtype == np.float64 and alpha.shape == level.shape


def test_closed_forms():
    t = np.array([0.01, 0.3, 0.9])
    np.testing.assert_allclose(get_path("ou").alpha(t), np.exp(-t), rtol=1e-15)
    np.testing.assert_allclose(get_path("ou").sigma(t), np.sqrt(1 - np.exp(-2 * t)), rtol=1e-13)
    assert np.all(get_path("edm").alpha(t) == 1) and np.all(get_path("edm").sigma(t) == t)
    np.testing.assert_array_equal(get_path("flow").alpha(t), 1 - t)
    np.testing.assert_array_equal(get_path("flow").sigma(t), t)


def cosine_betas():
    def bar(t):
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([min(1 - bar((i + 1) / 1000) / bar(i / 1000), 0.999) for i in range(1000)])


@pytest.mark.parametrize(
    ("name", "betas"),
    [("vp-linear", np.linspace(1e-4, 0.02, 1000)), ("vp-cosine", cosine_betas())],
)
def test_vp_paths_pass_through_the_training_timesteps(name, betas):
    path, step = get_path(name), np.arange(1000)
    cumulative = np.cumprod(1 - betas)
    np.testing.assert_allclose(path.alpha(step) ** 2, cumulative, rtol=1e-10)
    np.testing.assert_allclose(path.sigma(step) ** 2, 1 - cumulative, rtol=1e-10)
    half = np.log(path.ratio(step[:-1] + 0.5))
    ends = np.log(path.ratio(step))
    np.testing.assert_allclose(half, (ends[:-1] + ends[1:]) / 2, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(path.level(path.ratio(step)), step, atol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", PATHS)
def test_prediction_types_agree(name, prediction):
    path, rng = get_path(name), np.random.default_rng(0)
    for level in time_grid(path, 7):
        alpha, sigma = float(path.alpha(level)), float(path.sigma(level))
        x0, eps = rng.standard_normal((2, 64))
        x = alpha * x0 + sigma * eps
        definition = {
            "score": -eps / sigma,
            "epsilon": eps,
            "sample": x0,
            "v_prediction": alpha * eps - sigma * x0,
            "flow": eps - x0,
        }[prediction]
        unit = np.abs(x).max() / min(alpha, sigma) ** 2
        np.testing.assert_allclose(
            output_from_data(prediction, alpha, sigma, x, x0), definition, rtol=0, atol=1e-15 * unit
        )
        p_x, p_o = data_coefficients(prediction, alpha, sigma)
        np.testing.assert_allclose(
            p_x * x + p_o * definition, x0, rtol=0, atol=1e-14 * (1 + sigma) / alpha
        )
        s_z, s_o = score_coefficients(prediction, alpha, sigma)
        np.testing.assert_allclose(
            s_z * x + s_o * definition,
            -eps / sigma,
            rtol=0,
            atol=2e-14 * np.abs(x).max() / sigma**2,
        )


def test_data_prediction_at_pure_noise():
    for prediction in ("sample", "v_prediction", "flow"):
        assert np.all(np.isfinite(data_coefficients(prediction, 0.0, 1.0)))
    for prediction in ("epsilon", "score"):
        with pytest.raises(ValueError, match="says nothing about the data at alpha = 0"):
            data_coefficients(prediction, 0.0, 1.0)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("kind", ["log-snr", "uniform", "karras"])
def test_time_grids(name, kind):
    path = get_path(name)
    grid = time_grid(path, 12, kind)
    high, low = min(40.0, path.ratio_max), max(0.002, path.ratio_min)
    assert grid.shape == (12,) and grid.dtype == np.float64 and np.all(np.diff(grid) < 0)
    np.testing.assert_allclose(path.ratio(grid[[0, -1]]), [high, low], rtol=1e-12)
    spaced = {
        "log-snr": np.log(path.ratio(grid)),
        "uniform": grid,
        "karras": path.ratio(grid) ** (1 / 7),
    }[kind]
    np.testing.assert_allclose(np.diff(spaced), (spaced[-1] - spaced[0]) / 11, rtol=1e-7)


def test_grid_of_one_level_is_the_noisy_end():
    assert time_grid("edm", 1) == pytest.approx([40.0])


@pytest.mark.parametrize("name", PATHS)
def test_transition_against_its_definition(name):
    path = get_path(name)
    a, b = time_grid(path, 9)[[2, 3]]
    t = transition(path, a, b)
    r = path.alpha(a) / path.alpha(b)
    s2 = path.sigma(a) ** 2 - r**2 * path.sigma(b) ** 2
    assert t.r == pytest.approx(r, rel=1e-13) and t.s2 == pytest.approx(s2, rel=1e-12)
    width = path.sigma(b) * math.sqrt(s2) / path.sigma(a)
    assert t.width == pytest.approx(width, rel=1e-12)
    assert t.h == pytest.approx(math.log(path.ratio(a) / path.ratio(b)), rel=1e-12)


def test_transition_from_pure_noise():
    t = transition("flow", 1.0, 0.25)
    assert (t.r, t.s2, t.h) == (0.0, 1.0, math.inf) and t.width == 0.25


def test_custom_schedule():
    path = VPPath("mine", np.linspace(1e-3, 0.1, 50))
    assert get_path(path) is path
    assert float(path.alpha(0)) == pytest.approx(math.sqrt(1 - 1e-3))


@pytest.mark.parametrize("name", PATHS)
def test_initial_scale(name):
    level = time_grid(name, 1)[0]
    path = get_path(name)
    expected = (
        path.sigma(level) if name == "edm" else math.hypot(path.alpha(level), path.sigma(level))
    )
    assert path.init_scale(level) == pytest.approx(float(expected))
