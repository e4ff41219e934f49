"""denoise_token: what the plain head draws, with everything hoisted and one op a step."""

from __future__ import annotations

import logging

import pytest
import torch
from head_cases import CONTEXT, KINDS, head_of, relative_rms, rows, table_of
from torch.utils._python_dispatch import TorchDispatchMode

import ardiff
from ardiff import denoise
from ardiff.denoise import FusedHead, denoise_token, fused
from ardiff.head_weights import pack, quantize
from ardiff.hoisting import Modulations
from ardiff.models.head import DiffusionHead, EDMHead
from ardiff.run import initial_state, run
from ardiff.schedule import RaggedTable

KEY = torch.tensor([7])


def streams(n: int, first: int = 0) -> torch.Tensor:
    return torch.arange(first, first + n) * 2**20


class Plain:
    """A head that run knows nothing of: called with levels, in float32 or in another dtype."""

    def __init__(self, head, dtype=None) -> None:
        self.head, self.dtype = head, dtype

    def __call__(self, x, level, c):
        x = x if self.dtype is None else x.to(self.dtype)
        c = c if self.dtype is None else c.to(self.dtype)
        return self.head(x, level, c).float()


def plain_token(head, context, table, stream, **modifiers):
    x = initial_state(table, KEY, stream, 6)
    return run(table, head, x, key=KEY, stream=stream, condition=context, **modifiers)


def guided(n: int, three: bool = False) -> tuple[dict, dict]:
    """Guidance as denoise_token and as run takes it; the unconditional context is one for all."""
    options = {"uncond": rows(1, CONTEXT, seed=5).expand(n, -1), "guidance": torch.tensor([2.5])}
    if three:
        options |= {"uncond2": rows(n, CONTEXT, seed=6), "guidance2": torch.tensor([1.5])}
    return options, options


@pytest.mark.parametrize("ways", [1, 2, 3])
@pytest.mark.parametrize("kind", ["mar", "vibevoice", "edm"])
def test_a_hundred_steps_of_ddpm_are_those_of_the_plain_head(kind, ways):
    head, table, c = head_of(kind), table_of(kind, "ddpm", 100), rows(5, CONTEXT)
    options = guided(5, ways == 3)[0] if ways > 1 else {}
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
    options, _ = guided(5)
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


@pytest.mark.parametrize("kind", ["mar", "vibevoice"])
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


@pytest.mark.parametrize("kind", ["mar", "vibevoice"])
def test_int8_errs_within_its_bound(kind):
    head, table, c = head_of(kind, **WIDE), table_of(kind, "ddpm", 50), rows(8, CONTEXT)
    x = initial_state(table, KEY, streams(8), 16)
    expected = denoise_token(head, c, table, KEY, 0, streams(8), start=x)
    found = denoise_token(head, c, table, KEY, 0, streams(8), start=x, weights="int8")
    assert 1e-5 < relative_rms(found, expected) <= INT8


def test_int8_rows_and_their_scales():
    weight = rows(5, 33)
    weight[2] = 0
    q, scale = quantize(weight)
    assert q.dtype == torch.int8 and int(q.abs().max()) == 127
    error = (q * scale[:, None] - weight).abs()
    assert (error <= weight.abs().amax(1, keepdim=True) / 254 * 1.0001).all()
    assert not q[2].any() and scale[2] == 0


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


def test_weights_are_packed_once_and_again_when_they_change():
    head, table, c = head_of("mar"), table_of("mar", "ddpm", 3), rows(2, CONTEXT)
    first = denoise_token(head, c, table, KEY, 0, streams(2))
    packed = pack(head)
    assert pack(head) is packed and pack(head, "int8") is not packed
    for change in ("in place", "replaced"):
        with torch.no_grad():
            weight = head.res_blocks[1].adaLN_modulation[1].weight
            if change == "in place":
                weight.mul_(2)
            else:
                head.res_blocks[1].adaLN_modulation[1].weight = torch.nn.Parameter(weight * 2)
        found = denoise_token(head, c, table, KEY, 0, streams(2))
        assert pack(head) is not packed and relative_rms(found, first) > 1e-4
        expected = plain_token(Plain(head), c, table, streams(2))
        assert relative_rms(found, expected) < 1e-4
        first, packed = found, pack(head)


class Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.ops: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.ops.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("solver", ["ddpm", "rtk-uld"])
@pytest.mark.parametrize("ways", [1, 2])
@pytest.mark.parametrize("kind", ["mar", "vibevoice", "edm"])
def test_at_most_four_ops_a_step(kind, ways, solver):
    """The difference of a long and a short run, both within one run of modulations."""
    head, c = head_of(kind), rows(2, CONTEXT)
    options = guided(2)[0] if ways == 2 else {}
    counts = []
    for steps in (60, 60, 30):
        table = table_of(kind, solver, steps)
        with Count() as count:
            denoise_token(head, c, table, KEY, 0, streams(2), **options)
        assert sum("head_step" in name for name in count.ops) == table.calls
        counts.append((len(count.ops), len(table)))
    _, (long, rows_long), (short, rows_short) = counts  # the first one packs
    assert long - short <= 4 * (rows_long - rows_short)


def test_a_stage_shares_its_modulations():
    """RTK-ULD, 5 stages of 20 inner steps: 106 calls share 6 sets, where DDPM has one a call."""
    table = table_of("mar", "rtk-uld", 106, stages=5, inner=20)
    levels = torch.tensor(table.level[table.calls_model])
    assert table.calls == 106 and len(levels.unique()) == 6
    level = torch.tensor(table.level, dtype=torch.float32)
    sets = Modulations(pack(head_of("mar")), level, [rows(2, CONTEXT)])
    assert sets.sets == len(level.unique()) == 6
    ddpm = torch.tensor(table_of("mar", "ddpm", 100).level, dtype=torch.float32)
    assert Modulations(pack(head_of("mar")), ddpm, [rows(2, CONTEXT)]).sets == 100


def test_modulations_stay_within_their_budget(monkeypatch):
    head, c, level = head_of("mar"), rows(4, CONTEXT), torch.linspace(900, 0, 10)
    size = 4 * (3 * 2 + 2) * 32 * 4
    whole = Modulations(pack(head), level, [c], budget=1 << 30)
    few = Modulations(pack(head), level, [c], budget=3 * size)
    assert (whole.held, few.held) == (10, 3)
    assert few.at(0)[0].numel() * 4 == 3 * size
    for row in (*range(10), 2):
        (all_sets, i), (some, j) = whole.at(row), few.at(row)
        torch.testing.assert_close(some[j], all_sets[i], atol=1e-6, rtol=1e-6)
    assert Modulations(pack(head), level, [c], budget=1).held == 1
    table = table_of("mar", "ddpm", 10)
    found, expected = (
        denoise_token(head, c, table, KEY, 0, streams(4), budget=budget)
        for budget in (3 * size, 1 << 30)
    )
    assert relative_rms(found, expected) < 1e-5


def test_time_embeddings_are_made_once_for_all_tokens(monkeypatch):
    head, table, calls = head_of("mar"), table_of("mar", "ddpm", 5), []
    embed = head.embed_time
    monkeypatch.setattr(head, "embed_time", lambda t: calls.append(len(t)) or embed(t))
    for seed in range(3):
        denoise_token(head, rows(2, CONTEXT, seed=seed), table, KEY, 0, streams(2))
    assert calls == [5]
    denoise_token(head, rows(2, CONTEXT), table_of("mar", "ddpm", 4), KEY, 0, streams(2))
    assert calls == [5, 4]


def test_an_unknown_head_runs_plainly_and_the_log_says_so_once(caplog):
    denoise._told.clear()
    head, table, c = head_of("mar"), table_of("mar", "ddpm", 5), rows(2, CONTEXT)
    x = initial_state(table, KEY, streams(2), 6)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = denoise_token(Plain(head), c, table, KEY, 0, streams(2), start=x)
    assert len(caplog.records) == 1
    assert "Plain is no ardiff.models.head.Head" in caplog.text
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
    "alone": (dict(guidance=2.0), "uncond and guidance go together"),
    "uncond": (dict(guidance=2.0, uncond=rows(3, CONTEXT)), r"shape of context \[2, 24\], got"),
    "second": (dict(guidance2=2.0, uncond2=rows(2, CONTEXT)), "only with guidance and uncond"),
    "temperature": (dict(temperature=-1.0), "temperature must be finite and at least 0"),
    "stream": (dict(stream=streams(3)), r"stream must have shape \[2\], one a context, got \[3\]"),
    "start": (dict(start=rows(3, 6)), r"start must have shape \[2, d\], one row a context, got"),
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
    with pytest.raises(TypeError, match="FusedHead: function is no ardiff.models.head.Head"):
        FusedHead(plain_token)


def test_an_empty_batch():
    table = table_of("mar", "ddpm", 3)
    assert denoise_token(head_of("edm"), rows(0, CONTEXT), table, KEY, 0, streams(0)).shape == (
        0,
        6,
    )
    assert isinstance(fused(head_of("edm")).model, EDMHead)
