"""denoise_token: what the plain head draws, with everything hoisted and one op per step."""

from __future__ import annotations

import logging

import pytest
import torch

import ardiff
import ardiff.heads.fused as fused_module
from ardiff.heads.edm import EDMHead
from ardiff.heads.fused import FusedHead, fused
from ardiff.heads.mar import DiffusionHead
from ardiff.heads.token import denoise_token
from ardiff.loop.run import run
from ardiff.noise import initial_state
from ardiff.tables.ragged import RaggedTable
from tests._support.head_cases import (
    BARE,
    CONTEXT,
    KEY,
    KINDS,
    LEVELLED,
    Plain,
    guided,
    head_of,
    plain_token,
    relative_rms,
    rows,
    streams,
    table_of,
)


@pytest.mark.parametrize("ways", [1, 2, 3])
@pytest.mark.parametrize("kind", LEVELLED)
def test_a_hundred_steps_of_ddpm_are_those_of_the_plain_head(kind, ways):
    head, table, c = head_of(kind), table_of(kind, "ddpm", 100), rows(5, CONTEXT)
    options = guided(5, ways == 3) if ways > 1 else {}
    expected = plain_token(Plain(head), c, table, streams(5), **options)
    found = denoise_token(head, c, table, KEY, 0, streams(5), **options)
    assert relative_rms(found, expected) < 1e-4
    other = denoise_token(head, c, table, KEY, 0, streams(5, 9), **options)
    assert relative_rms(other, expected) > 1e-2


def test_the_steps_of_a_flow_map_are_those_of_its_own_sampler():
    """One step ends where the next begins; the last at 0."""
    head, c, n = head_of("pocket"), rows(4, CONTEXT), 5
    grid = [1 - k / n for k in range(n)]
    table = table_of("pocket", "flow-euler", n, grid=grid)
    x = initial_state(table, KEY, streams(4), 6)
    found = denoise_token(head, c, table, KEY, 0, streams(4), start=x)
    for start, end in zip(grid, [*grid[1:], 0.0], strict=True):
        x = x + (end - start) * head(x, torch.tensor([start]), c, torch.tensor([end]))
    assert relative_rms(found, x) < 1e-5


@pytest.mark.parametrize("solver", ["rtk-uld", "rtk-mala", "dpmpp-2m", "heun"])
@pytest.mark.parametrize("kind", ["mar", "edm"])
def test_other_solvers(kind, solver):
    head, table, c = head_of(kind), table_of(kind, solver, 24), rows(5, CONTEXT)
    options = guided(5)
    expected = plain_token(Plain(head), c, table, streams(5), **options)
    found = denoise_token(head, c, table, KEY, 0, streams(5), **options)
    assert relative_rms(found, expected) < 1e-4


@pytest.mark.parametrize("kind", ["mar", "edm"])
def test_tokens_with_tables_temperatures_and_guidance_of_their_own(kind):
    """Each token is what it is alone with its own table."""
    head, c = head_of(kind), rows(3, CONTEXT)
    tables = [table_of(kind, "ddpm", n) for n in (4, 9)]
    found = denoise_token(
        head, c, RaggedTable(tables, [0, 1, 0]), KEY, 0, streams(3),
        uncond=rows(3, CONTEXT, seed=5), guidance=torch.tensor([1.5, 2.0, 1.0]),
        temperature=torch.tensor([1.0, 0.5, 0.0]),
    )  # fmt: skip
    for i, (table, w, t) in enumerate([(0, 1.5, 1.0), (1, 2.0, 0.5), (0, 1.0, 0.0)]):
        alone = plain_token(
            Plain(head), c[i : i + 1], tables[table], streams(1, i),
            uncond=rows(3, CONTEXT, seed=5)[i : i + 1], guidance=torch.tensor([w]),
            noise_scale=torch.tensor([t]),
        )  # fmt: skip
        assert relative_rms(found[i : i + 1], alone) < 1e-4


def test_draw_moves_the_noise():
    head, table, c = head_of("mar"), table_of("mar", "ddpm", 5), rows(2, CONTEXT)
    x = rows(2, 6)
    first, again, moved = (
        denoise_token(head, c, table, KEY, draw, streams(2), start=x) for draw in (0, 0, 5)
    )
    assert torch.equal(first, again) and relative_rms(moved, first) > 1e-2
    starts = [denoise_token(head, c, table, KEY, draw, streams(2)) for draw in (0, 5)]
    assert relative_rms(starts[1], moved) > 1e-2


WIDE = {"dim": 16, "width": 256, "depth": 3}


@pytest.mark.parametrize("kind", BARE)
def test_bfloat16_errs_at_most_twice_as_much_as_pytorch(kind):
    head, table, c = head_of(kind, **WIDE), table_of(kind, "ddpm", 50), rows(8, CONTEXT)
    x = initial_state(table, KEY, streams(8), 16)
    expected = denoise_token(head, c, table, KEY, 0, streams(8), start=x)
    half = Plain(head_of(kind, **WIDE).bfloat16(), torch.bfloat16)
    theirs = run(table, half, x, key=KEY, stream=streams(8), condition=c)
    found = denoise_token(head, c, table, KEY, 0, streams(8), start=x, weights="bfloat16")
    ours, rival = relative_rms(found, expected), relative_rms(theirs, expected)
    assert 1e-6 < ours <= 2 * rival


# A matrix rounded to 127 steps of each row's largest magnitude, 3.1 standard deviations of 256
# normal weights, errs by 3.1 / (127 sqrt(12)) = 0.7% of its standard deviation; six layers add to
# 1.7% of a block's output, which guidance-free 50 steps bring to the sample.
INT8 = 0.02


@pytest.mark.parametrize("kind", BARE)
def test_int8_errs_within_its_bound(kind):
    head, table, c = head_of(kind, **WIDE), table_of(kind, "ddpm", 50), rows(8, CONTEXT)
    x = initial_state(table, KEY, streams(8), 16)
    expected = denoise_token(head, c, table, KEY, 0, streams(8), start=x)
    found = denoise_token(head, c, table, KEY, 0, streams(8), start=x, weights="int8")
    assert 1e-5 < relative_rms(found, expected) <= INT8


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_batch_invariance_to_the_bit(kind, weights):
    """A token alone, in a batch and elsewhere in it, guided or beside others that are."""
    head, c = head_of(kind), rows(21, CONTEXT)
    table = table_of(kind, "flow-euler" if kind == "pocket" else "ddpm", 6)
    uncond = rows(21, CONTEXT, seed=5)

    def draw(index: torch.Tensor) -> torch.Tensor:
        return denoise_token(
            head, c[index], table, KEY, 0, streams(21)[index], uncond=uncond[index], guidance=1.5,
            weights=weights, batch_invariant=True,
        )  # fmt: skip

    whole = draw(torch.arange(21))
    order = torch.arange(21).flip(0)
    assert torch.equal(draw(order), whole[order])
    for i in (0, 13, 20):
        assert torch.equal(draw(torch.tensor([i])), whole[i : i + 1])
    plain = denoise_token(
        head, c, table, KEY, 0, streams(21), uncond=uncond, guidance=1.5, weights=weights
    )
    assert relative_rms(plain, whole) < 1e-4


def test_an_unknown_head_runs_plainly_and_the_log_says_so_once(caplog):
    fused_module._tell.cache_clear()
    head, table, c = head_of("mar"), table_of("mar", "ddpm", 5), rows(2, CONTEXT)
    x = initial_state(table, KEY, streams(2), 6)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = denoise_token(Plain(head), c, table, KEY, 0, streams(2), start=x)
    assert len(caplog.records) == 1
    assert "Plain is no ardiff.heads.base.Head" in caplog.text
    assert torch.equal(found, plain_token(Plain(head), c, table, streams(2)))
    double = DiffusionHead(6, CONTEXT, 8, 1).double()
    assert fused(double) is double and "DiffusionHead are float64" in caplog.text
    with pytest.raises(ValueError, match="size of a token is not known of a Plain: pass start"):
        denoise_token(Plain(head), c, table, KEY, 0, streams(2))


BAD = {
    "weights": (
        dict(weights="int4"),
        r"weights must be one of float32, bfloat16, int8, got 'int4'",
    ),
    "budget": (dict(budget=0), "budget must be a positive number of bytes, got 0"),
    "alone": (dict(guidance=2.0), "guidance and uncond go together"),
    "uncond": (dict(guidance=2.0, uncond=rows(3, CONTEXT)), r"shape of context \[2, 24\], got"),
    "second": (dict(guidance2=2.0, uncond2=rows(2, CONTEXT)), "only with guidance and uncond"),
    "temperature": (dict(temperature=-1.0), "temperature must be finite and at least 0"),
    "stream": (
        dict(stream=streams(3)),
        r"stream must have shape \[2\], one per context, got \[3\]",
    ),
    "start": (dict(start=rows(3, 6)), r"start must have shape \[2, d\], one row per context, got"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_named(case):
    options, message = BAD[case]
    table = table_of("mar", "ddpm", 3)
    arguments = {"key": KEY, "draw": 0, "stream": streams(2)} | options
    with pytest.raises(ValueError, match=message):
        denoise_token(head_of("mar"), rows(2, CONTEXT), table, **arguments)


def test_a_fused_head_is_a_model_for_sample_too():
    head, c = head_of("mar"), rows(3, CONTEXT)
    options = {
        "shape": (3, 2, 3), "path": "vp-cosine", "prediction": "epsilon", "solver": "ddpm",
        "steps": 6, "seed": 7, "condition": c, "uncond": c.flip(0), "guidance": 2.0,
    }  # fmt: skip

    class Shaped:
        def hoist(self, levels, c):
            step = FusedHead(head).hoist(levels, c)
            return lambda row, x: step(row, x.flatten(1)).view_as(x)

        def hoist_guided(self, levels, conditions):
            step = FusedHead(head).hoist_guided(levels, conditions)
            return lambda row, x: [out.view_as(x) for out in step(row, x.flatten(1))]

    found, stats = ardiff.sample(Shaped(), return_stats=True, **options)
    expected = ardiff.sample(lambda x, t, c: head(x.flatten(1), t, c).view_as(x), **options)
    assert stats.calls == 12 and relative_rms(found, expected) < 1e-4
    with pytest.raises(TypeError, match="FusedHead: function is no ardiff.heads.base.Head"):
        FusedHead(plain_token)


def test_a_fused_head_is_taken_as_it_is(caplog):
    head, table, c = head_of("mar"), table_of("mar", "ddpm", 6), rows(3, CONTEXT)
    with caplog.at_level(logging.WARNING):
        found = denoise_token(FusedHead(head, "bfloat16"), c, table, KEY, 0, streams(3))
    assert not caplog.records
    assert torch.equal(found, denoise_token(head, c, table, KEY, 0, streams(3), weights="bfloat16"))
    assert not torch.equal(found, denoise_token(head, c, table, KEY, 0, streams(3)))


def test_an_empty_batch():
    table = table_of("mar", "ddpm", 3)
    assert denoise_token(head_of("edm"), rows(0, CONTEXT), table, KEY, 0, streams(0)).shape == (
        0,
        6,
    )
    assert isinstance(fused(head_of("edm")).model, EDMHead)
