"""Run a test on every implementation of the ops: each backend and CPU instruction set that can
serve here, and, marked `gpu`, each backend on the GPU."""

from __future__ import annotations

import contextlib

import pytest
import torch

import ardiff_kernels
from ardiff_kernels import testing
from ardiff_kernels.dispatch import backends

ON_GPU = ("triton", "cuda")


def implementations() -> list:
    names = [n for n in testing.usable_backends("uld_step") if n != "cpu"]
    names += [f"cpu-{isa}" for isa in testing.cpu_isas()]
    return names + [pytest.param(f"{name}-gpu", marks=pytest.mark.gpu) for name in ON_GPU]


@pytest.fixture(params=implementations())
def implementation(request):
    """Force one implementation: reference, triton (interpreted), cpu-scalar, cuda-gpu, ...; its
    device is torch's default device meanwhile."""
    name, _, variant = request.param.partition("-")
    device = "cuda" if variant == "gpu" else "cpu"
    if reason := backends.unusable("uld_step", name, device):
        pytest.skip(f"{name}: {reason}")
    with contextlib.ExitStack() as stack:
        stack.enter_context(ardiff_kernels.backend(name))
        stack.enter_context(torch.device(device))
        if name == "cpu":
            stack.enter_context(testing.cpu_isa(variant))
        yield request.param
