"""How a study's rows are pooled, paired and compared."""

from __future__ import annotations

import math

import pytest

from ardiff.study.mixture import Row
from ardiff.study.pooling import Results

FLOORS = {("a", "exact"): {"sliced_w2": 0.1}, ("b", "exact"): {"sliced_w2": 0.2}}


def row(target, method, budget, seed, value):
    metrics = {"sliced_w2": value, "strong": value / 2}
    return Row(target, "exact", method, budget, budget, "log-snr", seed, metrics)


def made(ratio=(2.0, 2.0)):
    """`good` at the floors; `bad` further by `ratio[seed]` with 8 calls, and not run with 5."""
    rows = [
        row(target, "good", budget, seed, floor["sliced_w2"])
        for (target, _), floor in FLOORS.items()
        for budget in (5, 8)
        for seed in (0, 1)
    ]
    rows += [
        row(target, "bad", 8, seed, ratio[seed] * floor["sliced_w2"])
        for (target, _), floor in FLOORS.items()
        for seed in (0, 1)
    ]
    return Results(rows, FLOORS)


def test_pooled_in_units_of_the_floor():
    results = made((2.0, 8.0))
    assert results.pooled("exact", "good", 8, "sliced_w2") == pytest.approx(1)
    assert results.pooled("exact", "bad", 8, "sliced_w2") == pytest.approx(4)
    assert results.pooled("exact", "good", 8, "strong") == pytest.approx(math.sqrt(0.05 * 0.1))
    assert math.isnan(results.pooled("exact", "bad", 5, "sliced_w2"))


def test_a_method_that_lacks_a_target_is_not_pooled():
    rows = [row("a", "half", 8, 0, 0.01)]
    assert math.isnan(Results(rows, FLOORS).pooled("exact", "half", 8, "sliced_w2"))


def test_ratios_are_paired_by_seed():
    """Seeds that agree leave no interval; seeds that differ leave one that holds 1 or not."""
    sure = made().ratio("exact", "bad", "good", 8, "sliced_w2")
    assert (sure.value, sure.low, sure.high) == pytest.approx((2, 2, 2))
    unsure = made((1.5, 1.0)).ratio("exact", "bad", "good", 8, "sliced_w2")
    assert unsure.low < 1 < unsure.value < unsure.high
    assert made().ratio("exact", "bad", "good", 5, "sliced_w2") is None
    some = made((2.0, 8.0)).ratio("exact", "bad", "good", 8, "sliced_w2", ["a"])
    assert some.value == pytest.approx(4)


def test_what_is_not_finite_has_a_ratio():
    wild = made((math.inf, math.inf))
    assert wild.ratio("exact", "bad", "good", 8, "sliced_w2").value == math.inf
    assert wild.ratio("exact", "good", "bad", 8, "sliced_w2").value == 0
    assert math.isinf(wild.pooled("exact", "bad", 8, "sliced_w2"))
    assert not wild.cases("bad", "sliced_w2")


def test_the_front_holds_what_fewer_calls_do_not_beat():
    front = made().front("exact", "sliced_w2")
    assert front == [(5, "good", pytest.approx(1))]


def test_cases_name_the_best_other():
    """One for each target and budget, and one over all targets."""
    cases = made().cases("bad", "sliced_w2")
    assert [(each.target, each.budget, each.best) for each in cases] == [
        ("a", 8, "good"),
        ("b", 8, "good"),
        ("all", 8, "good"),
    ]
    assert [each.ratio for each in cases] == pytest.approx([2, 2, 2])
    assert [each.to_floor for each in cases] == pytest.approx([2, 2, 2])
    lucky = made((0.5, 0.5)).cases("good", "sliced_w2")
    assert [(each.ratio, each.to_floor) for each in lucky] == [pytest.approx((2, 1))] * 3
    own = made().cases("good", "sliced_w2")
    assert [each.best for each in own] == ["bad"] * 3 and own[0].ratio == pytest.approx(0.5)
