"""Heads at rows of their own, and tokens drawn with a lookahead."""

from __future__ import annotations

import contextlib

import pytest
import torch

import ardiff
from ardiff.batch_invariant import batch_invariant
from ardiff.heads.edm import EDMHead
from ardiff.heads.fused import FusedHead
from ardiff.heads.mar import DiffusionHead
from ardiff.heads.token import denoise_token
from ardiff.noise import make_key, make_stream

DIM, CONTEXT, LEVELS = 6, 12, torch.tensor([900.0, 500.0, 500.0, 120.0, 3.0])


def _head(edm: bool = False):
    torch.manual_seed(3)
    head = DiffusionHead(DIM, CONTEXT, width=32, depth=2)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    head.eval().requires_grad_(False)
    return EDMHead(head) if edm else head


def _levels(edm: bool) -> torch.Tensor:
    return LEVELS / 100 if edm else LEVELS


@pytest.mark.parametrize("edm", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("budget", [1, 64 << 20])
@pytest.mark.parametrize("ways", [1, 2])
def test_rows_in_any_order_are_the_head(edm, fused, budget, ways, monkeypatch):
    """Held whole or made anew for each call, as the budget has it."""
    monkeypatch.setattr("ardiff.heads.hoisting._OWN_BUDGET", budget)
    plain = _head(edm)
    head = FusedHead(plain, budget=budget) if fused else plain
    levels, conditions = _levels(edm), list(torch.randn(ways, 3, CONTEXT).unbind(0))
    rows, samples = torch.tensor([4, 0, 2, 2, 1, 3]), torch.tensor([0, 2, 1, 0, 0, 2])
    x = torch.randn(6, DIM)
    with torch.inference_mode():
        found = head.hoist_rows(levels, conditions)(rows, samples, x)
        for out, c in zip(found, conditions, strict=True):
            expected = plain(x, levels[rows], c[samples])
            torch.testing.assert_close(out, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("edm", [False, True])
@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [0, 2, 1, 3], [0, 0, 1, 3]])
def test_rows_under_one_condition(edm, rows):
    """Neighbouring ones, which are a view, and others that begin and end like them."""
    plain, levels, x = _head(edm), _levels(edm)[[0, 1, 3, 4]], torch.randn(4, DIM)
    c, rows, first = torch.randn(1, CONTEXT), torch.tensor(rows), torch.zeros(4).long()
    with torch.inference_mode():
        (found,) = FusedHead(plain).hoist_rows(levels, [c])(rows, first, x)
        expected = plain(x, levels[rows], c.expand(4, -1))
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("edm", [False, True])
@pytest.mark.parametrize("budget", [1, 64 << 20])
def test_a_state_has_the_same_bits_in_any_batch(edm, budget):
    head = FusedHead(_head(edm), batch_invariant=True, budget=budget)
    levels, c = _levels(edm), torch.randn(3, CONTEXT)
    rows, samples, x = torch.tensor([4, 0, 2, 1]), torch.tensor([0, 2, 1, 2]), torch.randn(4, DIM)
    with torch.inference_mode():
        whole = head.hoist_rows(levels, [c])(rows, samples, x)[0].clone()
        for i in range(4):
            own = c[samples[i : i + 1]]
            alone = head.hoist_rows(levels, [own])(rows[i : i + 1], torch.tensor([0]), x[i : i + 1])
            assert torch.equal(alone[0][0], whole[i])


def _token(head, which, table, **options):
    torch.manual_seed(5)
    context = torch.randn(4, CONTEXT)[which]
    stream = make_stream(which, len(which), 7, "cpu")
    return denoise_token(head, context, table, make_key(1, "cpu"), 0, stream, **options)


@pytest.mark.parametrize("solver", ["ddpm", "dpmpp-2m-sde", "rtk-uld"])
@pytest.mark.parametrize("fused", [False, True])
def test_without_tolerance_a_token_has_its_bits(solver, fused):
    table = ardiff.solver(solver, path="vp-cosine", prediction="sample", steps=12)
    options = {"batch_invariant": True, "uncond": torch.zeros(4, CONTEXT), "guidance": 1.5}
    head = _head()
    if not fused:  # a model unknown to FusedHead runs by its own modules
        head = type("Own", (DiffusionHead,), {"norm": "layer"})(DIM, CONTEXT, 32, 2)
        head.load_state_dict(_head().state_dict())
        head = head.eval().requires_grad_(False)
    expected = _token(head, [0, 1, 2, 3], table, **options)
    made = []
    found = _token(
        head, [0, 1, 2, 3], table, lookahead=12, mode="picard", tolerance=0.0, rounds=made,
        **options,
    )  # fmt: skip
    assert torch.equal(found, expected) and not found.is_inference()
    assert made[0].rounds.max() <= len(table)


@pytest.mark.parametrize("rows", [4, "auto"])
def test_a_token_is_the_same_in_any_batch(rows):
    table = ardiff.solver("ddpm", path="vp-cosine", prediction="sample", steps=12)
    options = {"batch_invariant": True, "lookahead": rows}
    whole = _token(_head(), [0, 1, 2, 3], table, **options)
    for i in range(4):
        assert torch.equal(_token(_head(), [i], table, **options)[0], whole[i])
    assert torch.equal(_token(_head(), [3, 1], table, **options), whole[[3, 1]])


@pytest.mark.parametrize(
    ("solver", "options", "error", "message"),
    [
        ("ddim", {}, ValueError, "adds no noise"),
        ("ddpm", {"cuda_graph": True}, ValueError, "exclude each other"),
        ("rtk-uld", {"x0_clamp": 1.0}, ValueError, "diffusion rows alone"),
    ],
)
def test_what_a_lookahead_refuses(solver, options, error, message):
    table = ardiff.solver(solver, path="vp-cosine", prediction="sample", steps=12)
    with pytest.raises(error, match=message):
        _token(_head(), [0, 1], table, lookahead=4, **options)


def test_a_model_that_only_hoists_in_order_is_refused():
    class InOrder:
        def hoist(self, levels, condition):
            raise AssertionError("called")

    table = ardiff.solver("ddpm", path="vp-cosine", prediction="sample", steps=12)
    with pytest.raises(TypeError, match="evaluates rows in any order: InOrder has only hoist"):
        _token(InOrder(), [0, 1], table, lookahead=4, start=torch.zeros(2, DIM))


def test_rows_within_the_mode():
    """A plain head within `batch_invariant` keeps its bits too."""
    head, levels, c = _head(), LEVELS, torch.randn(3, CONTEXT)
    rows, samples, x = torch.tensor([4, 0, 2]), torch.tensor([0, 2, 1]), torch.randn(3, DIM)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(batch_invariant())
        call = head.hoist_rows(levels, [c])
        whole = call(rows, samples, x)[0]
        for i in range(3):
            part = slice(i, i + 1)
            assert torch.equal(call(rows[part], samples[part], x[part])[0][0], whole[i])
