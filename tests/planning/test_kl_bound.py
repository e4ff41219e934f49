"""The terms of the KL bound, each as worked out by hand."""

from __future__ import annotations

import math

import pytest

from ardiff.planning.kl_bound import kl_bound
from ardiff.planning.theory import Setting


def test_each_term_of_the_bound_is_that_worked_out_by_hand() -> None:
    setting = Setting(dim=8, lipschitz=3.0, accuracy=0.1, patches=4, second_moment=5.0,
                      score_error=0.5)  # fmt: skip
    found = kl_bound(setting, horizon=2.0, steps=50, eta=0.01)
    assert found.terms == pytest.approx(
        {
            "truncation": 2 * 0.01831563889 * 3 * 13,
            "curvature": 9 * 50 * 1e-4 * 8,
            "time": 2 * 0.01 * 8,
            "moment": 0.05,
            "score": 0.01 * 4 * 50 * 0.25,
        }
    )
    assert found.total == pytest.approx(1.4286198 + 0.36 + 0.16 + 0.05 + 0.5)
    assert found.dominant == "truncation"
    assert kl_bound(setting, 2.0, 50).eta == pytest.approx(0.04)
    assert kl_bound(setting, 8.0, 50).dominant == "curvature"


def test_patches_enter_by_the_score_error_alone() -> None:
    """The discretisation of all patches is that of d elements, however they are cut."""
    one, many = (
        kl_bound(Setting(64, 1.0, 0.1, patches=k, score_error=0.1), 4.0, 100) for k in (1, 16)
    )
    assert many.score == pytest.approx(16 * one.score)
    assert {**many.terms, "score": 0} == {**one.terms, "score": 0}


def test_what_has_no_meaning_is_refused() -> None:
    setting = Setting(10, 1.0, 0.1)
    with pytest.raises(ValueError, match="steps and eta must be positive and finite, got 0"):
        kl_bound(setting, 1.0, 0)
    with pytest.raises(ValueError, match="steps and eta"):
        kl_bound(setting, 1.0, 10, eta=math.nan)
    with pytest.raises(ValueError, match="horizon, an OU time, must be positive"):
        kl_bound(setting, 0.0, 10)
