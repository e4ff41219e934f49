"""`head_step` and `head_loop` on the GPU at published widths, in graphs, and a whole token. What
tests/kernels promises is tested there on both backends."""

from __future__ import annotations

import pytest
import torch

import ardiff_kernels
from ardiff.heads import token
from ardiff.heads.token import denoise_token
from ardiff_kernels.testing import same_bits
from tests._support.head_cases import CONTEXT, head_of, streams, table_of
from tests.kernels.head_loop.calls import errors, loop_call
from tests.kernels.head_step.calls import BF16, F32, I8, head_call

from . import calls

WIDE = {
    "mar": dict(width=1024, depth=6, d=16, out=16, modulation=BF16),
    "vibevoice": dict(width=1536, inner=4608, depth=4, d=64, out=64, norm="rms", mlp="gated"),
    "pocket": dict(width=512, depth=6, d=32, out=32),
}


def on_gpu(make, *args, **options):
    with torch.device(calls.DEVICE):
        return make(*args, **options)


@pytest.mark.parametrize("N", [1, 8, 20])
@pytest.mark.parametrize("dtype", [F32, BF16, I8], ids=str)
@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("backend", calls.BACKENDS)
def test_a_step_errs_at_most_twice_as_much_as_pytorch(backend, name, dtype, N):
    calls.require("head_step", backend)
    call = on_gpu(head_call, N, ways=2, dtype=dtype, outer=F32, **WIDE[name])
    with ardiff_kernels.backend(backend):
        found = call.functional()
    exact = call.oracle()
    theirs = (call.eager().double() - exact).norm()
    assert (found.double() - exact).norm() <= 2 * theirs + 2.0**-23 * exact.norm()


@pytest.mark.parametrize("dtype", [F32, BF16, I8], ids=str)
@pytest.mark.parametrize("name", WIDE)
def test_a_loop_against_float64_in_any_company_and_again(name, dtype):
    """Twenty runs have the same bits: blocks that overtake one another would differ."""
    calls.require("head_loop", "cuda")
    options = {k: v for k, v in WIDE[name].items() if k != "out"}
    call = on_gpu(loop_call, 9, ways=2, kinetic=True, dtype=dtype, **options)
    with ardiff_kernels.backend("cuda"), torch.device(calls.DEVICE):
        found = call.functional()
        for _ in range(20):
            assert all(map(same_bits, call.functional(), found))
        alone = call.rows(torch.tensor([4])).functional()
        assert all(same_bits(a, b[4:5]) for a, b in zip(alone, found, strict=True))
        assert max(errors(found, call.oracle())) <= 1e-4


@pytest.mark.parametrize("op", ["head_step", "head_loop"])
def test_a_graph_of_one_kernel_follows_its_inputs(op):
    calls.require(op, "cuda")
    wide = {"width": 1024, "depth": 6}
    loop = on_gpu(loop_call, 4, ways=2, dtype=BF16, **wide)
    with torch.device(calls.DEVICE), ardiff_kernels.backend("cuda"), torch.inference_mode():
        loop.args["x"] = loop.args["x"].contiguous()
        run = loop.functional if op == "head_loop" else loop.head.functional
        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = run()
        for _ in range(3):
            loop.args["x"].normal_()
            graph.replay()
            torch.cuda.synchronize()
            new = run()
            pairs = zip(result, new, strict=True) if op == "head_loop" else [(result, new)]
            assert all(same_bits(a, b) for a, b in pairs)


@pytest.mark.parametrize("solver", ["ddpm", "rtk-uld"])
@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_a_token_in_one_launch_is_that_of_the_loop_over_rows(solver, weights, monkeypatch):
    calls.require("head_loop", "cuda")
    head = head_of("mar", dim=16, width=1024, depth=6).to(calls.DEVICE)
    table = table_of("mar", solver, 50)
    c, key = torch.randn(4, CONTEXT, device=calls.DEVICE), torch.tensor([7], device=calls.DEVICE)
    arguments = (head, c, table, key, 0, streams(4).to(calls.DEVICE))
    options = {"uncond": c.flip(0), "guidance": 2.0, "weights": weights}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        found = denoise_token(*arguments, **options)
        torch.cuda.synchronize()
    launches = [e for e in profile.events() if "grid_phases" in e.name]
    assert len(launches) == 1
    monkeypatch.setattr(token, "unsuitable", lambda *args: "told so")
    expected = denoise_token(*arguments, **options)
    assert ((found - expected).norm() / expected.norm()).item() <= 1e-4
