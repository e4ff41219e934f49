"""The benchmark harness: correctness gates, pairing and the result form; the GPU check's report."""

from __future__ import annotations

import functools
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ardiff_kernels import testing
from benchmarks import (
    _harness,
    bench_bandwidth,
    bench_diffusion_step,
    bench_kv_attention,
    bench_kv_bandwidth,
    bench_sampler,
    bench_uld_step,
    gpu_check,
)
from benchmarks._harness import OURS, Row, Settings  # noqa: E402

QUICK = Settings(rounds=2, rivals=["eager"], seconds=1e-4)


def test_a_failed_correctness_row_withholds_the_rest() -> None:
    good = Row("s", "c", "reference", _harness.CORRECTNESS, 0.5)
    speed = Row("s", "c", "eager", "speedup", 9.0)
    assert _harness.gated([good, speed]) == [good, speed]
    for value in (1.5, math.nan, math.inf):
        bad = Row("s", "c", "reference", _harness.CORRECTNESS, value)
        assert speed not in _harness.gated([good, bad, speed])


def test_an_error_row_fails_on_wrong_and_on_nan_results() -> None:
    expected = torch.zeros(3)
    rows = [
        _harness.error_row("s", "c", "reference", torch.tensor(found), expected, 1e-3)
        for found in ([0, 1e-4, 0], [0, 2e-3, 0], [0, math.nan, 0])
    ]
    assert [len(_harness.failures([vars(row)])) for row in rows] == [0, 1, 1]


def test_competitors_take_turns_and_the_order_rotates(monkeypatch) -> None:
    """On a clock that the competitors move on themselves: each has its own time."""
    order: list[str] = []
    now = 0.0
    takes = {"a": 1.0, "b": 2.0, "c": 4.0}

    def run(name: str) -> None:
        nonlocal now
        order.append(name)
        now += takes[name]

    monkeypatch.setattr(_harness.time, "perf_counter", lambda: now)
    competitors = {name: functools.partial(run, name) for name in takes}
    seconds = _harness.interleave(competitors, Settings(rounds=3, seconds=1e-6))
    assert order[-9:] == [*"abc", *"bca", *"cab"]
    assert seconds == {name: [value] * 3 for name, value in takes.items()}


def test_a_speedup_is_the_median_of_paired_ratios() -> None:
    seconds = {OURS: [1.0, 2.0, 4.0], "eager": [3.0, 8.0, 8.0]}
    rows = {(r.rival, r.metric): r for r in _harness.comparison("s", "c", seconds, 10, ["eager"])}
    speedup = rows["eager", "speedup"]
    assert (speedup.low, speedup.value, speedup.high) == (2.5, 3.0, 3.5)
    assert rows[OURS, "time"].value == pytest.approx(2e8)
    assert (OURS, "speedup") not in rows
    with pytest.raises(ValueError, match="'device-copy': a speedup is against one of eager"):
        _harness.comparison("s", "c", {**seconds, "device-copy": [1.0] * 3}, 10, ["device-copy"])


@pytest.mark.parametrize("module", [bench_uld_step, bench_diffusion_step], ids=lambda m: m.__name__)
@pytest.mark.parametrize("size", ["/48", "-d16/80"])
def test_op_benchmarks_run_and_are_correct(module, size: str) -> None:
    op = module.CASES[0].split("/")[0]
    rows = _harness.gated(module.run(f"{op}{size}/float32", QUICK))
    assert rows[0].metric == _harness.CORRECTNESS and rows[0].value <= 1
    assert [r.rival for r in rows if r.metric == "speedup"] == ["eager"]
    forms = {OURS, "ardiff-functional", "eager"}
    if module is bench_uld_step:
        costs = [bench_uld_step.NOISELESS]
        costs += [bench_uld_step.SCALAR] if len(testing.cpu_isas()) > 1 else []
        forms.update(costs)
        assert [r.rival for r in rows if r.metric == "cost"] == costs
    assert {r.rival for r in rows if r.metric == "time"} == forms


def test_op_benchmarks_would_notice_a_wrong_result(monkeypatch) -> None:
    step = bench_uld_step.uld_step

    def wrong(*args, **kwargs):
        z, v, anchor = step(*args, **kwargs)
        return z, v + 1e-3, anchor

    calls = iter([wrong, step])
    monkeypatch.setattr(bench_uld_step, "uld_step", lambda *a, **k: next(calls)(*a, **k))
    rows = _harness.gated(bench_uld_step.run("uld_step/64/float32", QUICK))
    assert len(rows) == 1 and rows[0].value > 1


def test_eager_rival_has_the_moments_of_the_op() -> None:
    """Same affine map and noise: mean and covariance of 40,000 steps agree within 6 sigma.

    False alarm below 1e-7; dropping z_1 from the rival shifts the covariance by over 10 sigma.
    """
    n = 40_000
    settings = Settings(seed=5)
    shape = bench_uld_step._ops.parse(f"uld_step-d1/{n}/float32")
    tensors = bench_uld_step.inputs(shape, settings)
    for name in ("z", "v", "model_out", "anchor"):
        tensors[name] = torch.full_like(tensors[name], 0.3 * len(name))
    z, v, _ = bench_uld_step.uld_step(**tensors)
    torch.manual_seed(1)
    values = bench_uld_step.row_values()

    def rival(coefficients: dict[str, float]) -> torch.Tensor:
        state = [tensors[k] for k in ("z", "v", "model_out", "anchor")]
        return torch.cat(bench_uld_step.eager_step(*state, coefficients), 1).double()

    def distance(found: torch.Tensor) -> float:
        mine = torch.cat([z, v], 1).double()
        a, b = mine.T.cov(), found.T.cov()
        spread = (a.diag()[:, None] * a.diag()[None] + a**2).div(n / 2).sqrt()
        mean = (mine.mean(0) - found.mean(0)).abs() / (a.diag() / (n / 2)).sqrt()
        return max(float(((a - b).abs() / spread).max()), float(mean.max()))

    assert distance(rival(values)) < 6
    assert distance(rival({**values, "z_1": 0.0})) > 10


def test_bandwidth_runs_on_a_cpu_at_a_small_size() -> None:
    settings = Settings(rounds=2, seconds=1e-4)
    for op in ("uld_step", "diffusion_step"):
        rows = _harness.gated(bench_bandwidth.run(f"{op}/2048/bfloat16", settings))
        assert rows[0].value <= 1
        metrics = {(r.rival, r.metric) for r in rows}
        assert ("cpu", "share_of_copy_bandwidth") in metrics
        assert ("device-copy", "bandwidth") in metrics
        assert ("cpu", "host_time_of_a_1024_element_call") in metrics


@pytest.mark.parametrize("length", ["40", "1-40"])
def test_attention_benchmark_at_a_small_size(length: str, monkeypatch) -> None:
    case = f"kv_attention/B=3/heads=4:2/D=32/length={length}/bfloat16"
    monkeypatch.setattr(torch, "compile", lambda call, **options: call)
    settings = Settings(rounds=2, seconds=1e-4)
    rows = _harness.gated(bench_kv_attention.run(case, settings))
    rivals = ["sdpa", "eager", "compile"]
    assert [r.rival for r in rows[:4]] == ["reference", *rivals]
    assert all(r.metric == _harness.CORRECTNESS and r.value <= 1 for r in rows[:4])
    assert [r.rival for r in rows if r.metric == "speedup"] == rivals
    assert (OURS, "share_of_read_bandwidth") in {(r.rival, r.metric) for r in rows}
    rows = _harness.gated(bench_kv_bandwidth.run(case, settings))
    assert [r.rival for r in rows[:4]] == ["reference", *rivals] and rows[0].value <= 1
    assert [r.rival for r in rows if r.metric == "speedup"] == rivals
    op, calls = bench_kv_attention.kv_attention, []

    def wrong(*args):
        """The first call is the reference's."""
        calls.append(args)
        return op(*args) + (1e-1 if len(calls) == 2 else 0)

    monkeypatch.setattr(bench_kv_attention, "kv_attention", wrong)
    assert len(_harness.gated(bench_kv_attention.run(case, settings))) == 1
    with pytest.raises(ValueError, match="expected kv_attention/B="):
        bench_kv_attention.inputs("kv_attention/B=3/float32", settings)


def test_sampler_benchmark_at_two_images(monkeypatch) -> None:
    monkeypatch.setattr(bench_sampler, "STEPS", 8)
    rows = _harness.gated(
        bench_sampler.run("sun-shadow/N=2/float32", Settings(rounds=1, seconds=1e-3))
    )
    assert rows[0].value <= 1
    metrics = ["throughput", "speedup", "throughput-ddpm", "speedup-ddpm"]
    assert [r.metric for r in rows if r.rival == "reference-ddpm"] == metrics


def test_cases_say_op_or_model_then_size_then_type() -> None:
    shape = bench_uld_step._ops.parse("uld_step-d16/4194304/float32")
    assert (shape.op, shape.batch, shape.width) == ("uld_step", 2**18, 16)
    assert bench_uld_step._ops.parse("uld_step/4096/bfloat16").width == 1024
    assert bench_sampler.parse("sun-shadow/N=64/float32") == ("sun-shadow", 64)


@pytest.mark.parametrize(
    "case", ["uld_step/64x16/float32", "uld_step/0/float32", "uld_step-d0/8/x"]
)
def test_op_cases_of_another_form_are_named(case: str) -> None:
    with pytest.raises(ValueError, match="expected <op>/|must divide the elements"):
        bench_uld_step._ops.parse(case)


@pytest.mark.parametrize("case", ["sun-shadow:ddpm/N=2", "sun-shadow/N=0/float32", "m/2/float32"])
def test_sampler_cases_are_checked(case: str) -> None:
    with pytest.raises(ValueError, match="expected <model>/N=<images>/float32"):
        bench_sampler.parse(case)


def test_gpu_check_runs_every_step_and_reports_failure(tmp_path: Path, monkeypatch) -> None:
    done: list[str] = []

    def failing(name: str, command, log: Path) -> gpu_check.Step:
        done.append(name)
        return gpu_check.Step(name, " ".join(command), 1, 0.0, "broken")

    monkeypatch.setattr(gpu_check, "run_step", failing)
    assert gpu_check.main(["--out", str(tmp_path)]) == 1
    tokens = ["head N=1", "head N=16", "head N=256", "lookahead N=1", "lookahead N=16"]
    assert done == ["build", "doctor", "tests", "benchmarks", *tokens]
    report = json.loads((tmp_path / "gpu-check.json").read_text())
    assert report["passed"] is False and report["tests"]["passed"] == 0


def test_gpu_check_passes_only_with_passed_tests(tmp_path: Path, monkeypatch) -> None:
    def succeeding(tests: int, skipped: int):
        def step(name: str, command, log: Path) -> gpu_check.Step:
            junit = f'<testsuites><testsuite tests="{tests}" failures="0" errors="0" '
            (tmp_path / "junit.xml").write_text(f'{junit}skipped="{skipped}"/></testsuites>')
            (tmp_path / "bench.json").write_text('{"rows": [{"value": NaN}]}')
            return gpu_check.Step(name, "", 0, 0.0, "")

        return step

    monkeypatch.setattr(gpu_check, "run_step", succeeding(5, 5))
    assert gpu_check.main(["--out", str(tmp_path)]) == 1
    monkeypatch.setattr(gpu_check, "run_step", succeeding(5, 1))
    assert gpu_check.main(["--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "gpu-check.json").read_text())
    assert report["tests"]["passed"] == 4 and report["rows"] == [{"value": None}]
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_step_keeps_its_log_and_status(tmp_path: Path) -> None:
    script = "import os, sys; print(os.environ['ARDIFF_BUILD_CUDA']); sys.exit(3)"
    step = gpu_check.run_step("try", [sys.executable, "-c", script], tmp_path / "try.log")
    assert (step.status, step.tail.strip()) == (3, "1")
    missing = gpu_check.run_step("try", ["/no/such/program"], tmp_path / "try.log")
    assert missing.status == 127


def test_unknown_case_names_the_known_ones() -> None:
    module = SimpleNamespace(CASES=("a/1/float32",), run=lambda case, settings: [])
    rows = _harness.run_suite([module], "a-d7/7/float32", QUICK)["rows"]
    assert rows == [], "a width belongs to the size, not to the name"
    with pytest.raises(ValueError, match="a/1/float32"):
        _harness.run_suite([module], "b/1/float32", QUICK)
