"""The benchmark of learned tables: its exact ends, its cap, and that a worse table is worse."""

from __future__ import annotations

import math

import pytest
import torch

import ardiff
from benchmarks import bench_learned as bench
from benchmarks._harness import CORRECTNESS, OURS, Settings

SEED = 13  # of no benchmark


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(bench, "MIXTURES", (SEED,))
    monkeypatch.setattr(bench, "NOISE_SEEDS", (0,))
    monkeypatch.setattr(bench, "SAMPLES", 200)
    monkeypatch.setattr(bench, "STARTS", 40)
    monkeypatch.setattr(bench, "RIVALS", {"dpmpp-2m": ("dpmpp-2m", {})})
    for cached in (bench.problem, bench.exact_end):
        cached.cache_clear()
    yield
    for cached in (bench.problem, bench.exact_end):
        cached.cache_clear()


def test_rows_of_a_case():
    rows = list(bench.run("calls=8/norm=2/guidance=1", Settings()))
    assert rows[0].metric == CORRECTNESS and rows[0].value < 1
    found = {(row.rival, row.metric): row.value for row in rows}
    assert {rival for rival, _ in found} == {"exact", "truth", OURS, bench.TOLD, "dpmpp-2m"}
    for metric in ("end_point", "sliced_w2"):
        assert math.isclose(
            found["dpmpp-2m", f"{metric}_ratio_told"],
            found[bench.TOLD, metric] / found["dpmpp-2m", metric],
        )
    assert found[bench.TOLD, "end_point"] < found["dpmpp-2m", "end_point"]


def test_a_guided_case_is_another_and_has_an_end_point_alone():
    rows = list(bench.run("calls=8/norm=1/guidance=3", Settings()))
    assert all("sliced_w2" not in row.metric for row in rows)
    guided, plain = (bench.exact_end(SEED, 1.0, w, 0, 40.0) for w in (3.0, 1.0))
    assert float((guided - plain).norm(dim=1).mean()) > 0.1


def test_the_distance_is_capped_and_in_units_of_the_norm():
    x = torch.zeros(10, 3)
    assert bench.end_error(x, x, 1.0) == 0
    near = x + torch.tensor([0.03, 0.0, 0.0])
    assert bench.end_error(near, x, 1.0) == pytest.approx(0.03, rel=1e-2)
    assert bench.end_error(near, x, 3.0) == pytest.approx(0.01, rel=1e-2)
    assert bench.end_error(x + 100, x, 1.0) == pytest.approx(
        math.sqrt(bench.problems.CAP), rel=1e-3
    )


def test_fewer_calls_are_worse():
    p = bench.problem(SEED, 1.0, 1.0)
    exact = bench.exact_end(SEED, 1.0, 1.0, 0, 40.0)
    errors = []
    for steps in (6, 12, 24):
        table = ardiff.solver("dpmpp-2m", path="edm", prediction="sample", steps=steps)
        errors.append(bench.end_error(bench.draw(p, table, 0, 40), exact, 1.0))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


@pytest.mark.parametrize("case", ["calls=8", "calls=x/norm=1/guidance=1", "steps=8/norm=1/cfg=1"])
def test_a_case_of_another_form_is_refused(case):
    with pytest.raises(ValueError, match="expected calls=<n>/norm=<x>/guidance=<w>, such as calls"):
        bench.parse(case)
