"""The CUDA kernels of `lookahead_draft` and `lookahead_verify` run on the host, phase by phase over
all threads of a block in both orders (csrc/cuda/phases.cuh): bit for bit the C++ CPU library's
results, and within the bound of the float64 reference."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor

import ardiff_kernels
from ardiff_kernels import ops
from ardiff_kernels.dispatch import load
from ardiff_kernels.ops.lookahead_draft import COLUMNS as PLAN
from ardiff_kernels.ops.lookahead_verify import Verified
from ardiff_kernels.testing import same_bits
from tests import ROOT
from tests._support import build_cache
from tests.kernels.lookahead.calls import Case, LookaheadCall, check_against_oracle

NAMESPACE = "ardiff_lookahead_on_host"
FLAGS = [
    *("-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-w", "-DTORCH_STABLE_ONLY"),
    "-DTORCH_TARGET_VERSION=0x020A000000000000",
    *(f"-DARDIFF_CUDA_NAMESPACE={NAMESPACE}", "-DARDIFF_CUDA_KEY=CPU"),
]
F16, BF16 = torch.float16, torch.bfloat16
# One group of threads, several, and several rounds of them.
CASES = [
    Case(6, 16),
    Case(9, 13, second=True, scale=True, clamp=1.0, dtype=BF16),
    Case(6, 20, velocity=True, scale=True, dtype=F16),
    Case(6, 9, velocity=True, second=True, known=False),
    Case(6, 7, second=True, known=False, noise=True),
    Case(8, 24, velocity=True, rule=0.05),
    Case(7, 1, velocity=True, second=True),
    Case(4, 1100, 4, second=True, rule=0.05),
    Case(5, 1029, 3, velocity=True, scale=True, dtype=BF16),
    Case(2, 9001, 3, second=True),
]


class Walked:
    """Both ops of the CUDA sources on CPU tensors, threads one after the other in either order."""

    def __init__(self, verify: str) -> None:
        self._verify = ctypes.CDLL(verify)  # a draft's threads share nothing

    def walk(self, backwards: bool) -> None:
        self._verify.ardiff_walk(1, 0, ctypes.c_bool(backwards), ctypes.c_bool(True))

    def lookahead_draft(self, *args, **options):
        return getattr(torch.ops, NAMESPACE).lookahead_draft(*args, **options)

    def lookahead_verify(self, *args, **options):
        return Verified(*getattr(torch.ops, NAMESPACE).lookahead_verify(*args, **options))


@pytest.fixture(scope="module")
def on_host():
    cxx = build_cache.find_compiler()
    if cxx is None:
        pytest.skip("no C++ compiler was found")
    definitions = torch.library.Library(NAMESPACE, "DEF")
    for name in ("lookahead_draft", "lookahead_verify"):
        schema = str(getattr(torch.ops.ardiff, name).default._schema)
        definitions.define(schema.removeprefix("ardiff::"))
        source = ROOT / f"csrc/cuda/{name}/{name}.cu"
        library = build_cache.host_library(cxx, f"{name}_on_host", source, FLAGS)
        torch.ops.load_library(str(library))
    yield Walked(str(library))
    definitions._destroy()


def results(call: LookaheadCall, served, apart: float | None = None) -> list[Tensor]:
    """Of both ops. The outputs are near the drafts; with `apart` they are the drafts, but for that
    in the last element of row 2."""
    drafted = call.draft(served.lookahead_draft)
    if apart is None:
        call._generator.manual_seed(5)
        outs = call.outs(drafted[0], drafted[2])
    else:
        outs = drafted[2].clone()
        outs[:, 2, -1] += apart
    return [*drafted, *call.verify(drafted, outs, served.lookahead_verify)]


def check_alike(on_host, call: LookaheadCall, apart: float | None = None) -> Verified:
    found = []
    for backwards in (False, True):
        on_host.walk(backwards)
        found.append(results(call, on_host, apart))
    if load.CPU.loaded:
        with ardiff_kernels.backend("cpu"):
            found.append(results(call, ops, apart))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert same_bits(a, b)
    return Verified(*found[0][3:])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_alike(on_host, case):
    """Rows of wider buffers element by element, then packed rows, in whole units where they are."""
    call = LookaheadCall(case)
    check_alike(on_host, call)
    call.x, call.memory = call.x.contiguous(), call.memory.contiguous()
    call.v = None if call.v is None else call.v.contiguous()
    call.options = {
        k: v.contiguous() if isinstance(v, Tensor) else v for k, v in call.options.items()
    }
    check_alike(on_host, call)


@pytest.mark.parametrize("how", ["tolerance 0", "not coupled", "no noise"])
@pytest.mark.parametrize("velocity", [False, True])
@pytest.mark.parametrize("d", [12, 1029])
def test_equal_states_hold(on_host, how, velocity, d):
    """Where equality decides, rows whose output is the guess hold, and one that differs in its last
    element does not."""
    rule = 0.0 if how == "tolerance 0" else None
    call = LookaheadCall(Case(3, d, 5, velocity, second=not velocity, rule=rule))
    exact = {"p_x": 0.0, "p_o": 1.0, "o_0": 1.0, "calls": 1.0, "couples": float(how == "no noise")}
    for name, value in exact.items():
        call.plan[:, PLAN.index(name)] = value
    row, count, *_ = call.address
    row.copy_(torch.tensor([0, 1, 3])), count.fill_(5)
    if how == "no noise":
        call.options["noise_scale"] = torch.zeros(3)
    assert check_alike(on_host, call, 1e-3).accepted.tolist() == [2] * 3
    assert check_alike(on_host, call, 0.0).accepted.tolist() == [5] * 3


class OnHost(LookaheadCall):
    """A call that the CUDA sources serve unless told otherwise."""

    served: Walked

    def draft(self, function=None):
        return super().draft(function or self.served.lookahead_draft)

    def verify(self, drafted, outs, function=None):
        return super().verify(drafted, outs, function or self.served.lookahead_verify)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_float64(on_host, case):
    call = OnHost(case)
    call.served = on_host
    check_against_oracle(call)


def test_no_samples_and_messages(on_host):
    call = LookaheadCall(CASES[0]._replace(batch=0))
    drafted = call.draft(on_host.lookahead_draft)
    assert call.verify(drafted, drafted[2], on_host.lookahead_verify).x.shape == (0, 16)
    call.case = call.case._replace(rows=0)
    with pytest.raises(RuntimeError, match="^lookahead_draft: rows must be 1 or more, got 0"):
        call.draft(on_host.lookahead_draft)
