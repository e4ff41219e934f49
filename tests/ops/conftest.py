"""Run a test on every backend that can serve the ops here, and on every CPU instruction set."""

from __future__ import annotations

import contextlib

import pytest

import ardiff_kernels
from ardiff_kernels import testing


def implementations() -> list[str]:
    names = [n for n in testing.usable_backends("uld_step") if n != "cpu"]
    return names + [f"cpu-{isa}" for isa in testing.cpu_isas()]


@pytest.fixture(params=implementations())
def implementation(request):
    """Force one implementation: reference, triton (interpreted), cpu-scalar, cpu-avx2, ..."""
    name, _, isa = request.param.partition("-")
    with contextlib.ExitStack() as stack:
        stack.enter_context(ardiff_kernels.backend(name))
        if isa:
            stack.enter_context(testing.cpu_isa(isa))
        yield request.param
