"""A token through `head_lookahead`, as on a GPU: the tokens of the loop over rows and the rounds of
the executor."""

from __future__ import annotations

import pytest
import torch

import ardiff_kernels
from ardiff.guide import Guidance
from ardiff.heads.fused import FusedHead
from ardiff.heads.token import denoise_token
from ardiff.heads.token_lookahead import (
    all_held,
    rounds_of,
    run_token_lookahead,
    unsuitable_lookahead,
    unsuitable_rounds,
)
from ardiff.loop.lookahead import Lookahead, run_lookahead
from ardiff.noise import initial_state
from ardiff.tables.lookahead import lookahead_table
from ardiff.tables.ragged import RaggedTable
from tests._support.head_cases import CONTEXT, KEY, guided, head_of, rows, streams, table_of

SOLVERS = {"ddpm": 9, "dpmpp-2m-sde": 9, "unipc": 9, "rtk-uld": 12}


def token(kind, table, c, lookahead, budget=1 << 24, **options):
    """A token by the op, in batch-invariant mode; returns it, its rounds and the fused head."""
    head = FusedHead(head_of(kind), batch_invariant=True, budget=budget)
    more = Guidance.of(*(options.get(n) for n in ("uncond", "guidance", "uncond2", "guidance2")))
    sets = head.modulations(lookahead_table(table).level, [c, *more.conditions])
    x = initial_state(table, KEY, streams(len(c)), 6)
    scale = {n: t for n, t in options.items() if n == "noise_scale"}
    with torch.inference_mode():
        x, found = run_token_lookahead(
            table, sets, x, lookahead, key=KEY, stream=streams(len(c)), **scale,
            **more.per_sample(len(c), c.device).factors(),
        )  # fmt: skip
    return x, rounds_of(found), head


@pytest.mark.parametrize("ways", [1, 3])
@pytest.mark.parametrize("solver", SOLVERS)
def test_without_tolerance_it_is_the_token(solver, ways):
    """To the bit, on the backend that defines both."""
    table, c = table_of("mar", solver, SOLVERS[solver]), rows(3, CONTEXT)
    options = guided(3, ways == 3) if ways > 1 else {}
    with ardiff_kernels.backend("reference"):
        found, rounds, head = token("mar", table, c, Lookahead(4, "picard", 0.0), **options)
        expected = denoise_token(head, c, table, KEY, 0, streams(3), **options)
    assert torch.equal(found, expected)
    assert rounds.rounds.max() <= len(table) and rounds.evaluated >= len(c) * len(table) - len(c)


@pytest.mark.parametrize("solver", ["ddpm", "rtk-uld"])
def test_the_rounds_of_the_executor(solver):
    """With the plain head, whose outputs round otherwise."""
    table, c = table_of("mar", solver, SOLVERS[solver]), rows(3, CONTEXT)
    scale, look = torch.tensor([0.8]), Lookahead(5)
    found, rounds, head = token("mar", table, c, look, noise_scale=scale)
    x = initial_state(table, KEY, streams(3), 6)
    expected, theirs = run_lookahead(
        table, head.model, x, look, key=KEY, stream=streams(3), condition=c, noise_scale=scale
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert rounds.rounds.tolist() == theirs.rounds.tolist()
    assert rounds.evaluated == theirs.evaluated


def test_what_does_not_suit_is_said():
    table, x = table_of("mar", "ddpm", 9), rows(2, 6)
    assert "no launches" in unsuitable_lookahead(table, x, Lookahead(4), 1)
    assert unsuitable_rounds(table, Lookahead(4)) == ""
    assert "follows its last round" in unsuitable_rounds(table, Lookahead("auto"))
    ragged = RaggedTable([table, table_of("mar", "ddpm", 4)], [0, 1])
    assert unsuitable_rounds(ragged, Lookahead(4)) == "samples have tables of their own"
    mala = table_of("mar", "rtk-mala", 8)
    assert "accept or reject" in unsuitable_rounds(mala, Lookahead(4))
    with pytest.raises(ValueError, match="cannot run solver rtk-mala so: its rows accept"):
        run_token_lookahead(mala, None, x, Lookahead(4), key=KEY, stream=streams(2))


def test_modulations_that_are_not_all_held_are_refused():
    table, c = table_of("mar", "ddpm", 9), rows(2, CONTEXT)
    head = FusedHead(head_of("mar"), budget=1)
    assert not all_held(head.modulations(lookahead_table(table).level, [c]))
    with pytest.raises(ValueError, match="needs all 9 sets of modulations at once, and the budget"):
        token("mar", table, c, Lookahead(4), budget=1)


@pytest.mark.parametrize("budget", [1, 1 << 24])
def test_denoise_token_takes_it(budget, monkeypatch):
    """Where it is the way to run a token and the budget holds all modulations, else rounds."""
    monkeypatch.setattr("ardiff.heads.token.unsuitable_lookahead", lambda *args: "")
    head, table, c = head_of("mar"), table_of("mar", "ddpm", 9), rows(3, CONTEXT)
    place = (head, c, table, KEY, 5, streams(3))
    exact = {"lookahead": 4, "mode": "picard", "tolerance": 0.0, "budget": budget}
    options, made = {"batch_invariant": True, **guided(3, True)}, []
    with ardiff_kernels.backend("reference"):
        expected = denoise_token(*place, **options)
        found = denoise_token(*place, **options, **exact, rounds=made)
    assert torch.equal(found, expected) and not found.is_inference()
    assert (len(made[0].windows) > 0) == (budget == 1)
