"""The benchmark of heads on a tiny one."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from benchmarks import _harness, _head_gpu, bench_head  # noqa: E402
from benchmarks._heads import MODELS  # noqa: E402
from tests._support.graph_on_cpu import capturing, record

QUICK = _harness.Settings(rounds=2, seconds=1e-4, rivals=["eager"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_case_has_its_rows(dtype, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda head, **options: head)
    rows = _harness.gated(bench_head.run(f"tiny/N=3/{dtype}", QUICK))
    assert not _harness.failures([asdict(row) for row in rows])
    found = {(row.rival, row.metric) for row in rows}
    for suffix in ("", "-guided"):
        assert {("eager", f"speedup{suffix}"), ("ardiff", f"throughput{suffix}")} <= found
        assert ("ardiff", f"rtk-uld-gain-per-call{suffix}") in found
    assert ("ardiff", "share_of_read_bandwidth") in found
    assert (("eager", "error-bfloat16") in found) == (dtype == "bfloat16")
    checks = [row for row in rows if row.metric == _harness.CORRECTNESS]
    assert len(checks) == (3 if dtype == "float32" else 1) and all(r.value > 0 for r in checks)


def test_the_rows_of_a_gpu(monkeypatch):
    """Its code on a CPU, where `head_loop` is its steps, with a recorder for the graphs."""
    monkeypatch.setattr("ardiff.heads.packing.capturing", capturing)
    monkeypatch.setattr(_head_gpu.ardiff_kernels, "backend", lambda name: nullcontext())
    monkeypatch.setattr(_head_gpu, "_unusable", lambda backend, x: False)
    inputs = bench_head.token("tiny/N=3/bfloat16", QUICK)
    for guided in (False, True):
        plain = {"eager": partial(inputs.plain, guided, inputs.head)}
        rows = list(
            _head_gpu.measure(
                "head", "tiny/N=3/bfloat16", inputs.forms(guided), plain, QUICK, "", record,
                lambda function: _head_gpu.Launches(7, 1),
            )
        )  # fmt: skip
        assert not _harness.failures([asdict(row) for row in rows])
        names = (_head_gpu.PERSISTENT, _head_gpu.GRAPH)
        expected = {(n, m) for n in (*names, "eager") for m in ("time_of_a_step",)}
        expected |= {(n, "launches_of_a_token") for n in (*names, "eager")}
        expected |= {(n, "graph_launches_of_a_token") for n in names}
        expected |= {(n, _harness.CORRECTNESS) for n in names} | {("eager", "speedup-persistent")}
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
