"""What happens before the loop: weights packed, modulations shared and hoisted; ops in the loop."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ardiff.heads.hoisting import Modulations
from ardiff.heads.packing import WEIGHTS as DTYPES
from ardiff.heads.packing import pack
from ardiff.heads.token import denoise_token
from ardiff_kernels import testing
from ardiff_kernels.ops.packed_linear import limits
from ardiff_kernels.ops.packed_linear.packing import quantize_rows
from tests._support.head_cases import (
    CONTEXT,
    KEY,
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


def test_int8_rows_and_their_scales():
    weight = rows(5, 33)
    weight[2] = 0
    q, scale = quantize_rows(weight)
    assert q.dtype == torch.int8 and int(q.abs().max()) == 127
    error = (q * scale[:, None] - weight).abs()
    assert (error <= weight.abs().amax(1, keepdim=True) / 254 * 1.0001).all()
    assert not q[2].any() and scale[2] == 0


def test_weights_are_packed_once_and_again_when_they_change():
    head, table, c = head_of("mar"), table_of("mar", "ddpm", 3), rows(2, CONTEXT)
    first = denoise_token(head, c, table, KEY, 0, streams(2))
    packed = pack(head)
    assert pack(head).times is packed.times and pack(head, "int8").times is not packed.times
    for change in ("in place", "replaced"):
        with torch.no_grad():
            weight = head.res_blocks[1].adaLN_modulation[1].weight
            if change == "in place":
                weight.mul_(2)
            else:
                head.res_blocks[1].adaLN_modulation[1].weight = torch.nn.Parameter(weight * 2)
        found = denoise_token(head, c, table, KEY, 0, streams(2))
        assert pack(head).times is not packed.times and relative_rms(found, first) > 1e-4
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
@pytest.mark.parametrize("kind", LEVELLED)
def test_at_most_four_ops_a_step(kind, ways, solver):
    """The difference of a long and a short run, both within one run of modulations."""
    head, c = head_of(kind), rows(2, CONTEXT)
    options = guided(2) if ways == 2 else {}
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
    """RTK-ULD, 5 stages of 20 inner steps: 106 calls share 6 sets, where DDPM has one per call."""
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


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_many_rows_go_through_pytorch_where_it_is_faster(weights, monkeypatch):
    """The same outputs on both sides of the number of rows."""
    c, table = rows(5, CONTEXT), table_of("mar", "ddpm", 6)

    def draw(first: int | None) -> tuple[torch.Tensor, list[str]]:
        monkeypatch.setattr(limits, "PYTORCH_FROM", {limits.way(): {DTYPES[weights]: first}})
        head = head_of("mar")
        with Count() as count:
            found = denoise_token(head, c, table, KEY, 0, streams(5), weights=weights, **guided(5))
        return found, count.ops

    if "cpu" not in testing.usable_backends("head_step"):
        pytest.skip("the C++ kernels are not built")
    expected, ops = draw(None)
    assert sum("head_step" in name for name in ops) == table.calls
    found, ops = draw(6)  # rows of the smallest product, the modulations of one condition
    assert not any("head_step" in name or "packed_linear" in name for name in ops)
    assert relative_rms(found, expected) < (1e-5 if weights == "float32" else 1e-2)
    _, ops = draw(11)
    assert sum("head_step" in name for name in ops) == table.calls
