"""`lookahead_draft` and `lookahead_verify` in PyTorch and in C++ (test_triton.py has Triton): the
values of the float64 reference, the bits of the step ops, and results that depend on a sample
alone."""

from __future__ import annotations

import contextlib

import pytest
import torch

import ardiff_kernels
from ardiff_kernels import testing
from ardiff_kernels.dispatch import backends
from ardiff_kernels.testing import same_bits
from tests.kernels.lookahead.calls import (
    Case,
    LookaheadCall,
    check_against_oracle,
    check_bits_of_steps,
)

F16, BF16 = torch.float16, torch.bfloat16
CASES = [
    Case(6, 16),
    Case(9, 13, second=True, scale=True, clamp=1.0, dtype=BF16),
    Case(6, 20, velocity=True, scale=True, dtype=F16),
    Case(6, 9, velocity=True, second=True, known=False),
    Case(6, 7, second=True, known=False, noise=True),
    Case(8, 24, velocity=True, rule=0.05),
    Case(8, 10, second=True, rule=0.05),
    Case(7, 1, velocity=True, second=True),
    Case(4, 1100, 4, second=True, rule=0.05),  # several tiles and chunks
    Case(5, 1029, 3, velocity=True, scale=True, dtype=BF16),
]
# Beside these, more chunks than groups of a sum.
ALIKE = [*CASES, Case(2, 9001, 3, second=True), Case(3, 300, 12, velocity=True)]
IMPLEMENTATIONS = ["reference", *(f"cpu-{isa}" for isa in testing.cpu_isas())]


@contextlib.contextmanager
def forced(implementation: str):
    name, _, isa = implementation.partition("-")
    with ardiff_kernels.backend(name), testing.cpu_isa(isa) if isa else contextlib.nullcontext():
        yield


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    with forced(request.param):
        yield request.param


def both(call: LookaheadCall, draft, verify) -> list[torch.Tensor]:
    """Results of both ops, the verification on outputs near the drafts."""
    drafted = call.draft(draft)
    call._generator.manual_seed(5)
    return [*drafted, *call.verify(drafted, call.outs(drafted[0], drafted[2]), verify)]


def served(call: LookaheadCall) -> list[torch.Tensor]:
    return both(call, ardiff_kernels.ops.lookahead_draft, ardiff_kernels.ops.lookahead_verify)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_float64(implementation, case):
    found = check_against_oracle(LookaheadCall(case))
    assert found.accepted.max() > 0 or case.d > 1000


@pytest.mark.parametrize("rule", [0.0, None])
@pytest.mark.parametrize("velocity", [False, True])
def test_rows_have_the_bits_of_the_steps(implementation, velocity, rule):
    check_bits_of_steps(21, velocity, rule, "cpu")


@pytest.mark.parametrize("case", [CASES[1], CASES[2], CASES[9]], ids=str)
def test_the_batch_does_not_matter(implementation, case):
    """Nor do strides of rows, and states of a wider buffer."""
    call = LookaheadCall(case)
    drafted = call.draft()
    outs = call.outs(drafted[0], drafted[2])
    whole = call.verify(drafted, outs)
    for index in (torch.arange(case.batch).flip(0), torch.tensor([2])):
        some = call.take(index)
        parts = tuple(t[index] if len(t) else t for t in drafted)
        for a, b in zip(some.draft(), parts, strict=True):
            assert same_bits(a, b)
        for a, b in zip(some.verify(parts, outs[index]), whole, strict=True):
            assert same_bits(a, b[index] if len(b) else b)


def test_no_samples(implementation):
    call = LookaheadCall(Case(0, 5))
    drafted = call.draft()
    found = call.verify(drafted, drafted[2])
    assert found.x.shape == (0, 5) and found.gain.shape == (0, 5)


def test_what_is_not_read(implementation):
    """Outputs of rows past n, or of rows that do not call the model, may be anything."""
    call = LookaheadCall(Case(7, 12, second=True))
    drafted = call.draft()
    outs = call.outs(drafted[0], drafted[2])
    expected = call.verify(drafted, outs)
    row, count, *_ = call.address
    for b in range(7):
        for j in range(call.case.rows):
            past = j >= count[b] or not 0 <= row[b] < len(call.plan) or row[b] + j >= len(call.plan)
            if past or (row[b] + j) % 4 == 3:
                outs[b, j] = torch.nan
    assert outs.isnan().any() and not outs.isnan().all()
    for a, b in zip(call.verify(drafted, outs), expected, strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize("case", [CASES[2], CASES[4]], ids=str)
def test_opcheck(implementation, case):
    call = LookaheadCall(case)
    call.x, call.memory = call.x.contiguous(), call.memory.contiguous()
    call.v = None if call.v is None else call.v.contiguous()
    if case.known:  # opcheck compares whole storages: no view of a wider one
        call.options["known_x"] = call.options["known_x"].contiguous()
    both(call, *(_opcheck(op) for op in ("lookahead_draft", "lookahead_verify")))


def _opcheck(op):
    def check(*args, **options):
        found = getattr(torch.ops.ardiff, op).default
        torch.library.opcheck(found, args, {k: v for k, v in options.items() if v is not None})
        return getattr(ardiff_kernels.ops, op)(*args, **options)

    return check


@pytest.mark.skipif(
    bool(backends.unusable("lookahead_draft", "cpu", "cpu")), reason="the C++ library is not built"
)
@pytest.mark.parametrize("case", ALIKE, ids=str)
def test_instruction_sets_agree_to_the_bit(case):
    """Decisions and gains too, whose sums are taken in one order."""
    found = []
    for isa in testing.cpu_isas():
        with forced(f"cpu-{isa}"):
            found.append(served(LookaheadCall(case)))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert same_bits(a, b)
