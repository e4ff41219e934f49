"""The theory's figures: by hand, and against what is exact on targets whose curvature is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ardiff.planning.theory import (
    CONDITION,
    Setting,
    kernel_curvature,
    methods,
    ou_time,
    stage_size,
    theory_levels,
)
from ardiff.tables.paths import get_path, transition

PATHS = ("ou", "edm", "flow", "vp-cosine")


def named(setting: Setting, horizon: float = 3.7) -> dict:
    return {method.name: method for method in methods(setting, horizon)}


def test_the_figures_are_those_worked_out_by_hand() -> None:
    """d = 100, L = 2, eps = .1, K = 4, m0 = 50, |grad f(0)|^2 = 12: with 5 d + 12 = 512,
    ln(512 / .01) = 10.84349, ln(512^2 / .01) = 17.08189, ln(2 (200 + 50) / .01) = 10.81978 and
    ln(100 / .1) = 6.907755."""
    found = named(Setting(100, 2.0, 0.1, patches=4, second_moment=50.0, gradient=12.0))
    ddpm, dpum, uld, mala = (found[n] for n in ("ddpm", "dpum", "rtk-uld", "rtk-mala"))
    assert uld.eta == mala.eta == pytest.approx(0.1115718, abs=1e-7)  # log(1.25) / 2
    assert (mala.stages, uld.stages) == (87, 137)  # 86.75 and 136.66
    assert uld.gamma == pytest.approx(2.8284271)
    assert uld.tau == pytest.approx(0.1 / (200 * 10.81978) ** 0.5, rel=1e-6)
    assert uld.inner == pytest.approx((100 * 10.81978) ** 0.5 / 0.1, rel=1e-6)
    assert (ddpm.calls, ddpm.stages) == (pytest.approx(40_000), 40_000)
    assert ddpm.eta == pytest.approx(3.7 / 40_000)
    assert uld.calls == dpum.calls == pytest.approx(400)
    assert mala.calls == pytest.approx(16 * 10_000 * 6.907755, rel=1e-6)
    assert mala.inner * mala.stages == pytest.approx(mala.calls)
    for method in found.values():
        assert method.patch_calls == pytest.approx(4 * method.calls)
    assert [m.name for m in found.values() if m.patches_from_source] == ["ddpm", "rtk-uld"]
    assert mala.tau is None and mala.gamma is None and dpum.eta is None


@pytest.mark.parametrize(
    ("change", "powers"),
    [
        ({"dim": 400}, {"ddpm": 4, "dpum": 2, "rtk-uld": 2, "rtk-mala": 16 * 8.294 / 6.9078}),
        ({"accuracy": 0.05}, {"ddpm": 4, "dpum": 2, "rtk-uld": 2, "rtk-mala": 7.6009 / 6.9078}),
        ({"lipschitz": 2.0}, {"ddpm": 4, "dpum": 4, "rtk-uld": 4, "rtk-mala": 16}),
    ],
)
def test_calls_grow_by_the_rates(change: dict, powers: dict) -> None:
    base = {"dim": 100, "lipschitz": 1.0, "accuracy": 0.1}
    before, after = named(Setting(**base)), named(Setting(**(base | change)))
    for name, factor in powers.items():
        assert after[name].calls / before[name].calls == pytest.approx(factor, rel=1e-4)


def two_modes(path, level: float, x: np.ndarray, mean: float, variance: float) -> np.ndarray:
    """The second derivative of -log p at a level, of N(mean, variance) and N(-mean, variance)
    mixed evenly, at x in the path's own units."""
    alpha, sigma = float(path.alpha(level)), float(path.sigma(level))
    v, m = alpha**2 * variance + sigma**2, alpha * mean
    return 1 / v - (m / v) ** 2 / np.cosh(m * x / v) ** 2


@pytest.mark.parametrize("path", PATHS)
def test_kernels_of_the_theory_have_condition_at_most_3(path: str) -> None:
    """On two modes, whose log-density is not concave between them. L is the largest |f''| over
    all levels and states. With stages five times as long some kernel has two modes."""
    path, mean, variance = get_path(path), 2.0, 0.8
    ratios = np.geomspace(0.01, 40, 400)
    grid = np.linspace(-8, 8, 1601)

    def curvatures(level: float) -> np.ndarray:
        scale = math.hypot(path.alpha(level), path.sigma(level))
        return two_modes(path, level, grid * scale, mean, variance)

    levels = path.level(np.clip(ratios, path.ratio_min, path.ratio_max))
    lipschitz = max(
        abs(c) * float(path.alpha(b) ** 2 + path.sigma(b) ** 2)  # in OU units
        for b in levels
        for c in _ends(curvatures(b))
    )
    assert lipschitz == pytest.approx(mean**2 / variance**2 - 1 / variance, rel=1e-3)

    def conditions(levels: np.ndarray) -> list[float]:
        found = []
        for a, b in zip(levels[:-1], levels[1:], strict=True):
            t = transition(path, a, b)
            low, high = (t.r**2 / t.s2 + c for c in _ends(curvatures(b)))
            found.append(high / low if low > 0 else math.inf)
        return found

    levels = theory_levels(path, lipschitz, ratio_min=0.02)
    assert max(conditions(levels)) <= CONDITION * (1 + 1e-6)
    assert max(conditions(levels[::5])) == math.inf


def _ends(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()), float(values.max())


@pytest.mark.parametrize("lipschitz", [1e-3, 0.5, 1.0, 30.0, 1e6])
def test_the_kernels_of_a_stage_are_between_l_and_3_l(lipschitz: float) -> None:
    low, high = kernel_curvature(lipschitz, stage_size(lipschitz))
    assert (low, high) == pytest.approx((lipschitz, 3 * lipschitz), rel=1e-9)
    assert kernel_curvature(lipschitz, 2 * math.log1p(1 / lipschitz))[0] < 0


@pytest.mark.parametrize("path", PATHS)
def test_levels_are_eta_of_ou_time_apart_on_every_path(path: str) -> None:
    levels = theory_levels(path, 2.0, ratio_max=30.0, ratio_min=0.05)
    times = np.array([ou_time(path, level) for level in levels])
    gaps = -np.diff(times)
    assert gaps[:-1] == pytest.approx(stage_size(2.0), rel=1e-6)
    assert 0 < gaps[-1] <= stage_size(2.0) * (1 + 1e-6)
    ends = get_path(path).ratio(levels[[0, -1]])
    assert ends == pytest.approx([30.0, 0.05])
    alpha, sigma = get_path(path).alpha(levels), get_path(path).sigma(levels)
    assert np.exp(-times) == pytest.approx(alpha / np.hypot(alpha, sigma))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"dim": 0}, "dim must be an integer of 1 or more, got 0"),
        ({"dim": math.nan}, "dim must be an integer of 1 or more, got nan"),
        ({"dim": "9"}, "dim must be an integer of 1 or more, got '9'"),
        ({"dim": 10**31}, "dim must be from 1e-30"),
        ({"patches": 2.5}, "patches must be an integer"),
        ({"patches": 11}, "an element each: got 11 of 10"),
        ({"lipschitz": 0.0}, "lipschitz must be positive and finite, got 0.0"),
        ({"lipschitz": math.nan}, "lipschitz must be positive"),
        ({"lipschitz": "2"}, "lipschitz must be positive and finite, got '2'"),
        ({"lipschitz": 1e200}, "lipschitz must be from 1e-30"),
        ({"lipschitz": 1e-300}, "lipschitz must be from 1e-30"),
        ({"accuracy": "0.1"}, "above 0 and below 1, got '0.1'"),
        ({"accuracy": 1e-200}, "accuracy must be from 1e-30"),
        ({"second_moment": "1"}, "second_moment must be 0 or more and finite"),
        ({"accuracy": 1.0}, "above 0 and below 1, got 1.0"),
        ({"score_error": -1.0}, "score_error must be 0 or more"),
        ({"second_moment": math.inf}, "second_moment must be 0 or more and finite"),
    ],
)
def test_a_bad_setting_is_refused(values: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Setting(**({"dim": 10, "lipschitz": 1.0, "accuracy": 0.1} | values))


def test_the_ends_of_what_is_taken_have_finite_figures() -> None:
    for dim, lipschitz, accuracy in ((10**30, 1e30, 1e-30), (1, 1e-30, 0.999)):
        for found in methods(Setting(dim, lipschitz, accuracy), 3.0):
            assert math.isfinite(found.calls) and found.calls > 0


def test_what_has_no_meaning_is_refused() -> None:
    setting = Setting(10, 1.0, 0.1)
    with pytest.raises(ValueError, match="lipschitz must be positive"):
        stage_size(-1.0)
    with pytest.raises(ValueError, match="alpha = 0, an infinite OU time"):
        ou_time("flow", 1.0)
    with pytest.raises(ValueError, match="horizon"):
        methods(setting, math.inf)
    with pytest.raises(ValueError, match="0 < ratio_min < ratio_max"):
        theory_levels("edm", 1.0, ratio_max=0.5, ratio_min=0.5)
