"""The benchmark of heads on a tiny one."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks import _harness, _head_gpu, _rivals, bench_head  # noqa: E402
from benchmarks._heads import MODELS  # noqa: E402
from tests._support.fake_torchao import quantized_by_rounding
from tests._support.graph_on_cpu import capturing, record

QUICK = _harness.Settings(rounds=2, seconds=1e-4, rivals=["eager"])


@pytest.mark.parametrize(
    ("dtype", "rivals"),
    [
        ("float32", ["eager", "compile", "compile-frozen"]),
        (
            "bfloat16",
            ["eager-float32", *(f"{form}-bfloat16" for form in ("eager", "compile-frozen"))],
        ),
        ("int8", ["eager-float32", "eager-bfloat16", "torchao-int8", "compile-torchao-int8"]),
    ],
)
def test_a_case_has_its_rows(dtype, rivals, monkeypatch):
    """Those of every rival, in its dtype."""
    monkeypatch.setattr(torch, "compile", lambda head, **options: head)
    quantized_by_rounding(monkeypatch)
    settings = replace(QUICK, rivals=rivals)
    rows = _harness.gated(bench_head.run(f"tiny/N=3/{dtype}", settings))
    assert not _harness.failures([asdict(row) for row in rows])
    found = {(row.rival, row.metric) for row in rows}
    for suffix in ("", "-guided"):
        assert {rival for rival, metric in found if metric == f"speedup{suffix}"} == set(rivals)
        assert ("ardiff", f"throughput{suffix}") in found
        assert ("ardiff", f"rtk-uld-gain-per-call{suffix}") in found
    assert ("ardiff", "share_of_read_bandwidth") in found
    checks = [row for row in rows if row.metric == _harness.CORRECTNESS]
    assert {row.rival for row in checks} == {"ardiff", *rivals}
    ours = sum(row.rival == "ardiff" for row in checks)
    assert ours == (3 if dtype == "float32" else 1) and all(r.value > 0 for r in checks)
    errors = {row.rival: row.value for row in rows if row.metric == "error"}
    for rival in rivals:
        assert (errors[rival] < 1e-5) == (not rival.endswith(("bfloat16", "int8")))


def test_many_tokens_take_fewer_steps():
    """1,024 rows of MAR at 100 steps would take a minute a call."""
    assert bench_head.ROWS == tuple(2**i for i in range(11))
    for n, steps in ((16, 10), (1024, 6)):
        assert bench_head.token(f"tiny/N={n}/float32", QUICK).table.calls == steps


def test_the_rows_of_a_gpu(monkeypatch):
    """Its code on a CPU, where `head_loop` is its steps, with a recorder for the graphs."""
    monkeypatch.setattr(torch, "compile", lambda head, **options: head)
    monkeypatch.setattr("ardiff.heads.packing.capturing", capturing)
    monkeypatch.setattr(_head_gpu.ardiff_kernels, "backend", lambda name: nullcontext())
    monkeypatch.setattr(_head_gpu, "_unusable", lambda backend, x: False)
    inputs = bench_head.token("tiny/N=3/bfloat16", QUICK)
    for guided in (False, True):
        made = _rivals.of(inputs.head, "bfloat16", "cuda")
        plain = {name: made[name]() for name in ("eager-bfloat16", "compile-bfloat16")}
        rows = list(
            _head_gpu.measure(
                "head", "tiny/N=3/bfloat16", inputs.forms(guided), plain, QUICK, "", record,
                lambda function: _head_gpu.Launches(7, 1),
            )
        )  # fmt: skip
        assert not _harness.failures([asdict(row) for row in rows])
        ours, graphed = (_head_gpu.PERSISTENT, _head_gpu.GRAPH), "graphed-eager-bfloat16"
        graphs = (*ours, graphed)
        expected = {(n, "time_of_a_step") for n in (*graphs, *plain)}
        expected |= {(n, "launches_of_a_token") for n in (*ours, *plain)}
        expected |= {(n, "graph_launches_of_a_token") for n in graphs}
        expected |= {(n, _harness.CORRECTNESS) for n in graphs}
        expected |= {(n, "speedup-persistent") for n in (graphed, *plain)}
        assert {(row.rival, row.metric) for row in rows} == expected


def test_a_form_is_held_against_its_own_backend(monkeypatch):
    """One backend's rounding fails no other; a form that strays from its own backend fails."""
    current = []

    @contextmanager
    def backend(name):
        current.append(name)
        yield
        current.pop()

    monkeypatch.setattr("ardiff.heads.packing.capturing", capturing)
    monkeypatch.setattr(_head_gpu.ardiff_kernels, "backend", backend)
    monkeypatch.setattr(_head_gpu, "_unusable", lambda backend, x: False)
    inputs = bench_head.token("tiny/N=3/bfloat16", QUICK)
    forms, factors = inputs.forms(False), {"triton": 1.01}
    rows, persistent = forms.rows, forms.persistent
    forms.rows = lambda: rows() * factors.get(current[-1], 1.0)

    def checks():
        found = _head_gpu.measure(
            "head", "tiny/N=3/bfloat16", forms, {}, QUICK, "", record,
            lambda function: _head_gpu.Launches(7, 1),
        )  # fmt: skip
        return {row.rival: row.value for row in found if row.metric == _harness.CORRECTNESS}

    assert max(checks().values()) <= 1
    forms.persistent = lambda: persistent() * 1.001
    found = checks()
    assert found[_head_gpu.GRAPH] <= 1 < found[_head_gpu.PERSISTENT]


def test_a_graph_of_the_plain_loop_is_that_loop(monkeypatch):
    """A replay that gives other samples than the loop it was captured from fails."""
    monkeypatch.setattr(_head_gpu, "_unusable", lambda backend, x: True)
    inputs = bench_head.token("tiny/N=3/bfloat16", QUICK)
    rivals = {"eager-bfloat16": inputs.in_dtype(torch.bfloat16)}
    plain = inputs.plain(True, rivals["eager-bfloat16"])
    assert torch.equal(inputs.forms(True).plain(rivals["eager-bfloat16"]), plain)

    def skewed(function):
        replay, result = record(function)
        return torch.inference_mode()(lambda: (replay(), result.mul_(1.001))), result

    for recorder, passes in ((record, True), (skewed, False)):
        rows = _head_gpu.measure(
            "head", "tiny/N=3/bfloat16", inputs.forms(True), rivals, QUICK, "", recorder,
            lambda function: _head_gpu.Launches(7, 1),
        )  # fmt: skip
        first = next(rows)
        assert first.rival == "graphed-eager-bfloat16" and (first.value <= 1) == passes


def test_launches_are_kernels_on_the_gpu_and_graphs_of_the_host():
    """A Triton kernel has an event on either side, as a graph's kernels have on the GPU alone."""
    gpu, host = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
    events = [
        *((host, "cudaGraphLaunch"), (gpu, "head_step_kernel"), (gpu, "head_step_kernel")),
        *((host, "cuLaunchKernel"), (gpu, "diffusion_step_kernel")),
        *((host, "cudaMemcpyAsync"), (gpu, "Memcpy DtoD (Device -> Device)")),
        *((host, "cudaMemsetAsync"), (gpu, "Memset (Device)")),
        *((host, "Activity Buffer Request"), (host, "Lazy Function Loading")),
    ]
    found = _head_gpu.counted(SimpleNamespace(device_type=d, name=n) for d, n in events)
    assert found == (3, 1)


def test_wrong_outputs_withhold_the_figures(monkeypatch):
    ours = bench_head.Token.ours
    monkeypatch.setattr(bench_head.Token, "ours", lambda self, *a, **k: ours(self, *a, **k) * 1.001)
    monkeypatch.setattr(torch, "compile", lambda head, **options: head)
    rows = _harness.gated(bench_head.run("tiny/N=3/float32", QUICK))
    assert rows[-1].value > 1 and all("speedup" not in row.metric for row in rows)


def test_a_wrong_rival_withholds_the_figures(monkeypatch):
    monkeypatch.setattr(_rivals, "frozen", lambda head: lambda *args: head(*args) * 1.001)
    settings = replace(QUICK, rivals=["compile-frozen"])
    rows = _harness.gated(bench_head.run("tiny/N=3/float32", settings))
    assert rows[-1].rival == "compile-frozen" and rows[-1].value > 1


@pytest.mark.parametrize("name", [name for name in MODELS if name != "tiny"])
def test_published_shapes(name):
    """Parameters of the released heads, in millions, and the calls of a token."""
    shape = MODELS[name]
    with torch.device("meta"):
        head = shape.kind(shape.dim, shape.context, shape.width, shape.depth)
    millions = sum(p.numel() for p in head.parameters()) / 1e6
    expected = {
        "mar-b": (36, 100), "mar-l": (72, 100), "mar-h": (151, 100), "vibevoice-1.5b": (123, 10),
        "nextstep-1": (157, 20), "pocket-tts": (9.8, 1),
    }  # fmt: skip
    assert millions == pytest.approx(expected[name][0], rel=0.03)
    assert shape.own_table().calls == expected[name][1]


@pytest.mark.parametrize("case", ["mar-b", "mar-x/N=1/float32", "mar-b/N=0/int8", "mar-b/N=1/half"])
def test_cases_of_another_form_are_named(case):
    with pytest.raises(ValueError, match="expected <model>/N=<tokens>/<dtype> with a model of mar"):
        bench_head.parse(case)
