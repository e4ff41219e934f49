"""`lookahead_draft` and `lookahead_verify` on the GPU: the values of the float64 reference, the
bits of the step kernels and of the CPU library, and CUDA graphs that follow key and draw."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import ardiff_kernels
from ardiff_kernels import testing
from tests.kernels.lookahead.calls import (
    Case,
    LookaheadCall,
    check_against_oracle,
    check_bits_of_steps,
)

from . import calls

CASES = [
    Case(64, 16, 8),
    Case(5, 33, second=True, scale=True, clamp=1.0, dtype=torch.bfloat16),
    Case(6, 5000, velocity=True, scale=True, dtype=torch.float16),
    Case(5, 12288, second=True, known=False),
    Case(6, 515, velocity=True, second=True, known=False),
    Case(7, 1030, noise=True),
    Case(9, 2048, velocity=True, rule=0.05),
    Case(9, 640, second=True, rule=0.05),
    Case(2, 65537, rule=0.05),
]


@pytest.fixture(params=calls.BACKENDS)
def backend(request) -> Iterator[str]:
    for op in ("lookahead_draft", "lookahead_verify"):
        calls.require(op, request.param)
    with ardiff_kernels.backend(request.param):
        yield request.param


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_float64(case, backend):
    check_against_oracle(LookaheadCall(case).on(calls.DEVICE))


@pytest.mark.parametrize("rule", [0.0, None])
@pytest.mark.parametrize("velocity", [False, True])
@pytest.mark.parametrize("d", [16, 5003])
def test_rows_have_the_bits_of_the_steps(d, velocity, rule, backend):
    check_bits_of_steps(d, velocity, rule, calls.DEVICE)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cuda_equals_cpu_by_bit(case):
    for op in ("lookahead_draft", "lookahead_verify"):
        calls.require(op, "cuda")
        if "cpu" not in testing.usable_backends(op):
            pytest.skip("the C++ CPU kernels are not built")
    call = LookaheadCall(case)
    with ardiff_kernels.backend("cpu"):
        drafted = call.draft()
        outs = call.outs(drafted[0], drafted[2])
        verified = call.verify(drafted, outs)
    on_gpu = call.on(calls.DEVICE)
    with ardiff_kernels.backend("cuda"):
        found = on_gpu.draft()
        found = *found, *on_gpu.verify(found, outs.to(calls.DEVICE))
    for got, expected in zip(found, (*drafted, *verified), strict=True):
        assert testing.same_bits(got.cpu(), expected)


@pytest.mark.parametrize("case", [CASES[0], CASES[2]], ids=str)
def test_the_batch_does_not_matter(case, backend):
    call = LookaheadCall(case)
    index = torch.tensor([2])
    one, call = call.take(index).on(calls.DEVICE), call.on(calls.DEVICE)
    drafted = call.draft()
    outs = call.outs(drafted[0], drafted[2])
    whole = *drafted, *call.verify(drafted, outs)
    found = one.draft()
    found = *found, *one.verify(found, outs[index])
    for got, expected in zip(found, whole, strict=True):
        assert testing.same_bits(got, expected[index] if len(expected) else expected)


def test_replay_follows_key_and_draw(backend):
    call = LookaheadCall(CASES[0]).on(calls.DEVICE)
    with torch.inference_mode():
        drafted = call.draft()
        outs = call.outs(drafted[0], drafted[2])
        call.verify(drafted, outs)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            drafted = call.draft()
            results = call.verify(drafted, outs)

        def replay() -> list[torch.Tensor]:
            graph.replay()
            torch.cuda.synchronize()
            return [drafted[0].clone(), results.x.clone(), results.accepted.clone()]

        first = replay()
        _, _, draw, key, _ = call.address
        for place in (key, draw):
            place.add_(1)
            assert not torch.equal(replay()[0], first[0])
            place.sub_(1)
        assert all(torch.equal(a, b) for a, b in zip(replay(), first, strict=True))
