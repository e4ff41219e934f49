"""Gradients of the steps on `cuda` against `cpu` by bit; tests/kernels compares both with
float64."""

from __future__ import annotations

import pytest
import torch

import ardiff_kernels
from ardiff_kernels import testing
from tests._support import gradient_calls

from . import calls

CASES = {**gradient_calls.SMALL, **gradient_calls.LARGER}


@pytest.mark.parametrize("name", CASES)
def test_cuda_equals_cpu_by_bit(name: str) -> None:
    call = CASES[name]()
    calls.require(f"{call.op}_backward", "cuda")
    if "cpu" not in testing.usable_backends(f"{call.op}_backward"):
        pytest.skip("the C++ CPU kernels are not built")
    grads = gradient_calls.upstream(call)
    with ardiff_kernels.backend("cpu"):
        expected = gradient_calls.found(call, grads)
    with ardiff_kernels.backend("cuda"):
        got = gradient_calls.found(calls.on_gpu(call), [g.to(calls.DEVICE) for g in grads])
    for name_of_input, want in expected.items():
        assert torch.equal(got[name_of_input].cpu(), want)
