"""Figures and tables of the study's pages."""

from __future__ import annotations

import math

import pytest

from ardiff.study.text import figure, table


@pytest.mark.parametrize(
    ("value", "digits", "sign", "shown"),
    [
        (0.123, 2, False, ".12"),
        (-0.123, 2, False, "-.12"),
        (10.05, 2, False, "10.05"),
        (0.999, 2, False, "1.00"),
        (0.25, 3, True, "+.250"),
        (-1.5, 1, True, "-1.5"),
        (math.nan, 2, False, ""),
        (None, 2, False, ""),
        (math.inf, 2, False, "not finite"),
    ],
)
def test_figures_have_no_leading_zero(value, digits, sign, shown):
    assert figure(value, digits, sign) == shown


def test_a_table_has_a_line_for_each_row():
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    assert table(["a"], []) == "| a |\n| --- |"
