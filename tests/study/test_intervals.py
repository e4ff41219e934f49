"""Means over seeds and their intervals."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from ardiff.study.intervals import STUDENT, geometric_mean, interval, ratio_interval


def test_the_quantiles_are_students():
    for freedom, quantile in enumerate(STUDENT, start=1):
        assert quantile == pytest.approx(stats.t.ppf(0.975, freedom), abs=6e-4)


def test_the_interval_of_a_mean():
    """Mean 1, deviation 1 of three: half width 4.303 / sqrt(3). Beyond eleven values the interval
    is that of eleven, which is too wide."""
    found = interval([0.0, 1.0, 2.0])
    assert found.value == 1
    assert found.high - 1 == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    assert 1 - found.low == pytest.approx(found.high - 1)
    many = interval([0.0, 1.0] * 50)
    assert many.high - 0.5 > 1.96 * 0.5 / 10


def test_one_value_has_no_interval():
    assert interval([0.5]) == (0.5, -math.inf, math.inf)
    assert ratio_interval([0.0]) == (1.0, 0.0, math.inf)
    assert str(ratio_interval([0.0])) == "1.00"


def test_the_interval_of_a_ratio():
    found = ratio_interval([0.0, 1.0, 2.0])
    assert [math.log(each) for each in found] == pytest.approx(interval([0.0, 1.0, 2.0]))
    assert str(ratio_interval([math.log(0.5)] * 2)) == ".50 (.50 to .50)"
    assert ratio_interval([0.0, math.inf]).value == math.inf
    assert ratio_interval([0.0, 600.0]).high == math.inf  # no overflow


def test_geometric_mean():
    assert geometric_mean([1, 4]) == pytest.approx(2)
    assert geometric_mean([0, 1]) == pytest.approx(1e-6)  # of 0 the logarithm is that of 1e-12
    assert geometric_mean([1, math.inf]) == math.inf
    assert math.isnan(geometric_mean([]))
