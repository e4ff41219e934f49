"""The benchmark of `packed_linear` on small layers."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from benchmarks import _harness, _rivals, bench_linear  # noqa: E402
from tests._support.fake_torchao import quantized_by_rounding

QUICK = _harness.Settings(rounds=2, seconds=1e-4)


def rows_of(case: str, monkeypatch) -> list[_harness.Row]:
    monkeypatch.setattr(torch, "compile", lambda call, **options: call)
    monkeypatch.setattr(bench_linear, "_BEYOND_CACHES", 2**16)
    quantized_by_rounding(monkeypatch)
    return _harness.gated(bench_linear.run(case, QUICK))


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_case_has_its_rows(dtype, n, monkeypatch):
    rows = rows_of(f"packed_linear/40x24/N={n}/{dtype}", monkeypatch)
    assert not _harness.failures([asdict(row) for row in rows])
    found = {(row.rival, row.metric) for row in rows}
    rivals = set(_rivals.of(torch.nn.Linear(1, 1), dtype, "cpu"))
    assert {rival for rival, metric in found if metric == "speedup"} == rivals
    assert {rival for rival, metric in found if metric == "time"} == {"ardiff", *rivals}
    checks = {row.rival for row in rows if row.metric == _harness.CORRECTNESS}
    assert checks == {"ardiff", *rivals}
    assert (("ardiff", "share_of_read_bandwidth") in found) == (n == 1)
    scaling = {row.metric: row.value for row in rows if row.metric.startswith("scaling")}
    assert scaling.pop("scaling-threads=1") == 1
    threads = torch.get_num_threads()
    assert (f"scaling-threads={threads}" in scaling) == (threads > 1)


def test_threads_are_set_and_set_back(monkeypatch):
    seen, now = [], [6]
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda n: now.__setitem__(0, n))
    rows = list(bench_linear._scaling("c", lambda: seen.append(now[0]), QUICK))
    assert set(seen) == {1, 2, 4, 6} and now == [6]
    assert [row.metric for row in rows][::2] == [f"time-threads={n}" for n in (1, 2, 4, 6)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_wrong_products_withhold_the_figures(dtype, monkeypatch):
    product = bench_linear.ops.packed_linear
    monkeypatch.setattr(
        bench_linear.ops, "packed_linear", lambda *args, **options: product(*args, **options) * 1.05
    )
    rows = rows_of(f"packed_linear/40x24/N=3/{dtype}", monkeypatch)
    assert len(rows) == 1 and rows[0].value > 1


@pytest.mark.parametrize(
    "case",
    ["packed_linear/4x4/float32", "packed_linear/4x0/N=1/int8", "packed_linear/4x4/N=1/half"],
)
def test_cases_of_another_form_are_named(case):
    with pytest.raises(ValueError, match="expected packed_linear/<K>x<O>/N=<rows>/<dtype>, such"):
        bench_linear.inputs(case, QUICK)
