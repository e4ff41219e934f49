"""The study's page and its plain data, from rows that are made by hand."""

from __future__ import annotations

import json
import math

import pytest

from ardiff.study import report
from ardiff.study.mixture import Row
from ardiff.study.pooling import Results

FLOORS = {("a", "exact"): {"sliced_w2": 0.1}, ("b", "exact"): {"sliced_w2": 0.2}}
# Errors over the floor by budget, with the seeds 0 and 1.
OVER = {
    "ddpm": {5: (4.0, 4.0), 8: (2.0, 2.0)},
    "plan": {5: (1.6, 1.6), 8: (1.0, 1.0)},
    "unipc": {5: (1.25, 1.25), 8: (1.5, 3.0)},
    "wild": {8: (math.inf, math.inf)},
}


def rows():
    return [
        Row(target, score, method, budget, budget, "log-snr", seed, {"sliced_w2": value * floor})
        for (target, score), floors in FLOORS.items()
        for floor in floors.values()
        for method, budgets in OVER.items()
        for budget, values in budgets.items()
        for seed, value in enumerate(values)
    ]


@pytest.fixture
def results():
    return Results(rows(), FLOORS)


def cells(table: str) -> dict[str, list[str]]:
    """The cells of a table's lines by its first."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()]
    return {first: rest for first, *rest in lines}


def test_the_best_of_a_budget_is_bold(results):
    shown = cells(report.by_budget(results, "exact"))
    assert shown["method"] == ["5 calls", "8 calls"]
    assert shown["`ddpm`"] == ["4.00", "2.00"]
    assert shown["`plan`"] == ["1.60", "**1.00**"] and shown["`unipc`"] == ["**1.25**", "2.12"]
    assert shown["`wild`"] == ["", "not finite"]


def test_ratios_have_intervals_over_seeds(results):
    shown = cells(report.against(results, "exact", "ddpm"))
    assert "`ddpm`" not in shown
    assert shown["`plan`"] == [".40 (.40 to .40)", ".50 (.50 to .50)"]
    half = 12.706 * math.log(2) / 2  # Student's t with one degree of freedom, of ln .75 and ln 1.5
    low, high = (f"{1.125**0.5 * math.exp(sign * half):.2f}" for sign in (-1, 1))
    assert shown["`unipc`"][1] == f"1.06 ({low[1:]} to {high})"


def test_a_front_is_not_beaten_with_as_many_calls_or_fewer(results):
    lines = report.fronts(results).splitlines()[2:]
    assert lines == ["| exact | 5 | `unipc` | 1.25 |", "| exact | 8 | `plan` | 1.00 |"]


def test_what_a_plan_misses_is_told(results):
    """With 5 calls it is 1.28 of the best, at every seed; with 8 it is the best."""
    pooled, each = report.planned(results).splitlines()[2:4]
    assert each.startswith("| exact | each target | 4 | 2 | 2 | 2 | 1.28: ")
    assert each.endswith(", 5 calls, `unipc` |")
    assert (
        pooled == "| exact | all targets together | 2 | 1 | 1 | 1 | 1.28: all, 5 calls, `unipc` |"
    )


def test_the_page_leaves_out_what_was_not_run(results):
    page = report.markdown(results, 8)
    assert "Ratios to `ddpm`" in page and "What `ardiff plan` recommends" in page
    some = Results([row for row in rows() if row.method in ("unipc", "wild")], FLOORS)
    page = report.markdown(some, 8)
    assert "Ratios to" not in page and "recommends" not in page


def test_plain_data_has_a_line_for_each_run():
    found = report.plain(rows(), FLOORS)
    assert json.loads(json.dumps(found["floors"])) == [
        ["a", "exact", {"sliced_w2": 0.1}],
        ["b", "exact", {"sliced_w2": 0.2}],
    ]
    line = dict(zip(found["columns"], found["rows"][0], strict=True))
    assert line["target"] == "a" and line["method"] == "ddpm" and line["seed"] == 0
    assert line["sliced_w2"] == 0.4 and line["mmd"] is None
    assert len(found["rows"]) == 2 * 7 * 2
