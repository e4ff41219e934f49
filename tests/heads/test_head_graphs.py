"""Whole tokens of a diffusion head as CUDA graphs; without a GPU graph_on_cpu records them."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from ardiff.heads.fused import FusedHead
from ardiff.heads.hoisting import Modulations
from ardiff.heads.packing import pack
from ardiff.heads.token import denoise_token
from ardiff.loop import cuda_graphs as graphs
from ardiff.tables.ragged import RaggedTable
from tests._support import graph_on_cpu
from tests._support.head_cases import (
    CONTEXT,
    KEY,
    KINDS,
    guided,
    head_of,
    relative_rms,
    rows,
    streams,
    table_of,
)


@pytest.fixture
def recordings(monkeypatch):
    """The recordings of a test, which begins without any."""
    made = []

    def record(function):
        made.append(function)
        return graph_on_cpu.record(function)

    monkeypatch.setattr(graphs, "record", record)
    for module in ("hoisting", "packing"):
        monkeypatch.setattr(f"ardiff.heads.{module}.capturing", graph_on_cpu.capturing)
    monkeypatch.setattr("ardiff.heads.token.check_graph", lambda *_: None)
    graphs.clear_graphs()
    yield made
    graphs.clear_graphs()


def both(head, table, c, **options):
    """A token by a replay and by the loop."""
    arguments = (
        head,
        c,
        table,
        KEY,
        options.pop("draw", 0),
        options.pop("stream", streams(len(c))),
    )
    return denoise_token(*arguments, cuda_graph=True, **options), denoise_token(
        *arguments, **options
    )


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_replay_is_the_loop(recordings, kind, weights):
    """With other contexts, streams, draws, starts, temperatures and guidance, to the bit."""
    head = head_of(kind)
    head.flow_map = False  # a flow map reads its levels back, on a CPU alone
    table = table_of(kind, "flow-euler" if kind == "pocket" else "ddpm", 6)
    for i in range(3):
        found, expected = both(
            head, table, rows(4, CONTEXT, seed=i), stream=streams(4, 5 * i), draw=3 * i,
            weights=weights, temperature=0.9 - 0.1 * i, uncond=rows(4, CONTEXT, seed=9),
            guidance=1.0 + i,
        )  # fmt: skip
        assert torch.equal(found, expected)
    assert len(recordings) == 1


@pytest.mark.parametrize("budget", [1, 1 << 30])
def test_stages_share_their_modulations_in_a_recording_too(recordings, monkeypatch, budget):
    """One recording serves tables of other levels, if the same ones are equal."""
    made, head, c = [], head_of("mar"), rows(3, CONTEXT)
    fill = Modulations._make
    monkeypatch.setattr(
        Modulations, "_make", lambda self, first: made.append(self.sets) or fill(self, first)
    )
    for ratio_min in (0.05, 0.1):
        table = table_of("mar", "rtk-uld", 24, ratio_min=ratio_min)
        found, expected = both(head, table, c, budget=budget)
        assert torch.equal(found, expected)
    assert len(recordings) == 1
    assert set(made) == {len(set(table.level.tolist()))} and made[0] < len(table)
    other = table_of("mar", "ddpm", 24)
    assert torch.equal(*both(head, other, c, budget=budget)) and len(recordings) == 2


def test_tokens_with_tables_of_their_own(recordings):
    tables = [table_of("mar", "ddpm", n) for n in (4, 9)]
    for index in ([0, 1, 0], [1, 1, 0]):
        found, expected = both(head_of("mar"), RaggedTable(tables, index), rows(3, CONTEXT))
        assert relative_rms(found, expected) < 1e-6


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_a_replay_reads_the_weights_of_now(recordings, weights):
    """A parameter written to in place needs no other recording; a new one may. The old one keeps
    its values."""
    head, table, c = head_of("mar"), table_of("mar", "ddpm", 4), rows(2, CONTEXT)
    before, _ = both(head, table, c, weights=weights)
    names = ("mlp.0.weight", "mlp.2.bias", "adaLN_modulation.1.weight")
    for name, through_data in product(names, (False, True)):
        with torch.no_grad():
            parameter = head.res_blocks[1].get_parameter(name)
            (parameter.data if through_data else parameter).mul_(1.5)
        found, expected = both(head, table, c, weights=weights)
        assert torch.equal(found, expected) and relative_rms(found, before) > 1e-4
        before = found
    assert len(recordings) == 1
    old = head.res_blocks[0].mlp[0].weight
    kept = old.detach().clone()
    head.res_blocks[0].mlp[0].weight = torch.nn.Parameter(2 * kept)
    found, expected = both(head, table, c, weights=weights)
    assert torch.equal(found, expected) and relative_rms(found, before) > 1e-4
    assert torch.equal(old, kept)
    own = weights == "float32" and pack(head).weights[2].dim() == 2  # else a packed copy
    assert len(recordings) == (2 if own else 1)


def test_batches_of_one_bucket_share_a_recording(recordings):
    head, table = head_of("vibevoice"), table_of("vibevoice", "dpmpp-2m", 5)
    for batch in (5, 6):
        found, expected = both(
            head, table, rows(batch, CONTEXT), batch_invariant=True, **guided(batch)
        )
        assert torch.equal(found, expected)
    assert len(recordings) == 1


def test_fused_heads_of_one_model_are_one_kind():
    head = head_of("mar")
    assert FusedHead(head) == FusedHead(head) and hash(FusedHead(head)) == hash(FusedHead(head))
    others = [FusedHead(head, "int8"), FusedHead(head, budget=5), FusedHead(head_of("mar"))]
    assert not any(FusedHead(head) == other for other in others)


def test_what_cannot_be_captured():
    head, table, c = head_of("mar"), table_of("mar", "ddpm", 3), rows(2, CONTEXT)
    with pytest.raises(ValueError, match="cuda_graph needs a CUDA device, got cpu"):
        denoise_token(head, c, table, KEY, 0, streams(2), cuda_graph=True)


def test_a_table_of_another_kind(recordings):
    head, table, c = head_of("mar"), table_of("mar", "ddpm", 3).to("cpu"), rows(2, CONTEXT)
    with pytest.raises(TypeError, match="needs a StepTable or a RaggedTable, got a DeviceTable"):
        denoise_token(head, c, table, KEY, 0, streams(2), cuda_graph=True)


def test_a_bound_on_the_data_prediction_is_of_the_replay_too(recordings):
    head, table, c = head_of("mar"), table_of("mar", "ddpm", 4), rows(2, CONTEXT)
    found, expected = both(head, table, c, x0_clamp=0.1)
    assert torch.equal(found, expected)
    assert not torch.equal(found, both(head, table, c)[0])
    noise = torch.zeros(4, 2, found.shape[1])
    with pytest.raises(ValueError, match="cuda_graph and noise exclude each other"):
        both(head, table, c, noise=noise)
