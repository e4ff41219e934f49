"""What the Triton kernels of `lookahead_draft` and `lookahead_verify` do, interpreted: the values
of the float64 reference in one tile and in several, and the bits of the step kernels."""

from __future__ import annotations

import importlib

import pytest
import torch

import ardiff_kernels
from ardiff_kernels.dispatch import backends
from ardiff_kernels.testing import same_bits
from tests.kernels.lookahead.calls import (
    Case,
    LookaheadCall,
    check_against_oracle,
    check_bits_of_steps,
)

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    bool(backends.unusable("lookahead_draft", "triton", "cpu")), reason="triton is not interpreted"
)
F16, BF16 = torch.float16, torch.bfloat16
CASES = [
    Case(6, 16),
    Case(9, 13, second=True, scale=True, clamp=1.0, dtype=BF16),
    Case(6, 20, velocity=True, scale=True, dtype=F16),
    Case(6, 9, velocity=True, second=True, known=False),
    Case(6, 7, second=True, known=False, noise=True),
    Case(32, 6, 4, known=False),
    Case(32, 6, 4, known=False, second=True),
    Case(32, 6, 4, velocity=True, known=False),
    Case(8, 24, velocity=True, rule=0.05),
    Case(8, 10, second=True, rule=0.05),
]


@pytest.fixture(autouse=True)
def triton():
    with ardiff_kernels.backend("triton"):
        yield


def in_tiles(monkeypatch, cols: int) -> None:
    """Interpreted tiles are wide: narrow them so that a sample has several."""
    for op in ("draft", "verify"):
        module = importlib.import_module(f"ardiff_kernels.ops.lookahead_{op}.triton")
        monkeypatch.setattr(module, "tile_width", lambda d, most, kernel: cols)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_float64(case):
    call = LookaheadCall(case)
    found = check_against_oracle(call)
    kept, moved = found.accepted, found.row - call.address[0]
    assert kept.max() > 0 and (moved > kept).any()


@pytest.mark.parametrize("case", [CASES[1], CASES[2], CASES[8]], ids=str)
def test_against_float64_in_several_tiles(case, monkeypatch):
    in_tiles(monkeypatch, 8)
    check_against_oracle(LookaheadCall(case))


@pytest.mark.parametrize("case", [CASES[1], CASES[2]], ids=str)
def test_the_batch_does_not_matter(case):
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


@pytest.mark.parametrize("rule", [0.0, None])
@pytest.mark.parametrize("velocity", [False, True])
def test_rows_have_the_bits_of_the_steps(velocity, rule, monkeypatch):
    in_tiles(monkeypatch, 8)
    check_bits_of_steps(21, velocity, rule, "cpu")


def test_no_samples():
    call = LookaheadCall(Case(0, 5))
    drafted = call.draft()
    found = call.verify(drafted, drafted[2])
    assert found.x.shape == (0, 5) and found.gain.shape == (0, 5)
