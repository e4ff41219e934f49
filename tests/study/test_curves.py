"""The calls to an accuracy, and exponents, on curves that are known."""

from __future__ import annotations

import numpy as np
import pytest

import ardiff
from ardiff.study import curves
from ardiff.study.gaussian_law import Law, law_of


def test_a_power_is_met_where_it_is():
    calls = [4, 8, 16, 32]
    errors = [3 / n**2 for n in calls]
    for bound in (0.15, 0.02, 0.0045):
        assert curves.crossing(calls, errors, bound) == pytest.approx((3 / bound) ** 0.5)
    assert curves.crossing(calls, errors, 1.0) == 4  # met before the first
    assert curves.crossing(calls, errors, 1e-4) is None
    assert curves.crossing([], [], 1.0) is None
    # it must stay below: what 4 and 8 calls have is lost at 16
    assert 16 < curves.crossing(calls, [0.1, 0.1, 1.0, 0.1], 0.2) < 32
    assert curves.crossing(calls, [np.nan, np.inf, 0.1, 0.1], 0.2) == 16


def test_an_exponent_is_found_with_its_interval():
    x = [2, 4, 8, 16, 32, 64]
    exact = curves.power_law(x, [5 * v**0.5 for v in x])
    assert exact.exponent == pytest.approx(0.5) and exact.points == 6
    assert exact.low == pytest.approx(0.5) and exact.high == pytest.approx(0.5)
    bent = curves.power_law(x, [5 * v**0.5 + v for v in x])
    assert 0.5 < bent.low < bent.exponent < bent.high < 1
    assert curves.power_law(x, [None, 1.0, None, None, 2.0, None]) is None
    with_gaps = curves.power_law(x, [1.0, None, 4.0, None, 16.0, None])
    assert with_gaps.exponent == pytest.approx(1.0) and with_gaps.points == 3


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_the_calls_are_those_of_the_next_table(name):
    """Interpolated calls, of which the exact least number is within 2% and one."""
    target = curves.target_law()

    def error(law: Law) -> float:
        return 10 * float(law.kl(Law(0 * target.mean, target.variance))[1])

    def of(steps: int) -> float:
        table = ardiff.solver(
            name, path=curves.PATH, prediction=curves.PREDICTION, steps=steps,
            ratio_max=curves.RATIO_MAX, ratio_min=curves.RATIO_MIN, denoise_last=False,
        )  # fmt: skip
        return error(law_of(table, np.array(curves.VARIANCES)))

    centred = curves.curves(name, "log-snr", 200, [{}])
    found, setting = curves.calls_to(
        centred, lambda law: error(Law(0 * law.mean, law.variance)), 0.02
    )
    least = next(steps for steps in range(3, 200) if of(steps) <= 0.02)
    assert setting == {} and abs(found - least) < 0.02 * least + 1


def test_the_best_setting_is_taken_and_what_does_not_fit_is_left_out():
    settings = [{"inner": 24, "tau": 0.2}, {"inner": 2, "tau": 0.5}]
    found = curves.curves("rtk-uld", "log-snr", 100, settings)
    assert found[0].points[0].calls >= 50  # two stages of 25
    assert found[1].points[0].calls == 6
    alone = [curves.calls_to([curve], lambda law: float(law.variance[0]), 1e9) for curve in found]
    both = curves.calls_to(found, lambda law: float(law.variance[0]), 1e9)
    assert both == min(alone, key=lambda pair: pair[0]) == (6.0, settings[1])
