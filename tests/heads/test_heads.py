"""Heads: those of transformers, in formulas of their own modules; hoisted and plain; loading."""

from __future__ import annotations

import pytest
import torch

from ardiff._files.checkpoints import CheckpointError
from ardiff.heads.base import count_modules
from ardiff.heads.loading import forms, load_head
from ardiff.heads.mar import DiffusionHead
from ardiff.heads.pocket import PocketHead
from ardiff.heads.vibevoice import VibeVoiceHead
from tests._support.head_cases import CONTEXT, KINDS, head_of, rows
from tests._support.small_models import randomise

LEVELS = torch.tensor([999.0, 400.5, 20.0, 0.0])


def theirs(kind: str, **changes):
    pytest.importorskip("transformers", minversion="5.21")
    if kind == "vibevoice":
        from transformers.models.vibevoice import configuration_vibevoice as configs
        from transformers.models.vibevoice import modeling_vibevoice as models

        config = configs.VibeVoiceDiffusionHeadConfig(
            hidden_size=CONTEXT, intermediate_size=56, num_hidden_layers=3, **changes
        )
        config.latent_size = 10
        return randomise(models.VibeVoiceDiffusionHead(config))
    from transformers.models.pocket_tts import configuration_pocket_tts as configs
    from transformers.models.pocket_tts import modeling_pocket_tts as models

    config = configs.PocketTTSFlowHeadConfig(
        hidden_size=32, num_hidden_layers=3, latent_dim=10, condition_dim=CONTEXT, **changes
    )
    return randomise(models.PocketTTSFlowHead(config))


def test_vibevoice_is_that_of_transformers():
    other = theirs("vibevoice")
    ours = load_head(other.state_dict())
    assert isinstance(ours, VibeVoiceHead) and ours.depth == 3
    x, c = rows(4, 10), rows(4, CONTEXT)
    expected = other(x, LEVELS, c)
    torch.testing.assert_close(ours(x, LEVELS, c), expected, atol=1e-5, rtol=1e-5)
    assert (expected[0] - other(x, LEVELS.flip(0), c)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["lsd", "drifting"])
def test_pocket_is_that_of_transformers(kind):
    """Their time runs from noise at 0, and their velocity with it."""
    other = theirs("pocket", flow_type=kind)
    ours = load_head({f"model.flow_head.{k}": v for k, v in other.state_dict().items()})
    assert isinstance(ours, PocketHead)
    x, c = rows(4, 10), rows(4, CONTEXT)
    start, end = torch.tensor([0.0, 0.25, 0.5, 0.75]), torch.tensor([0.25, 0.25, 1.0, 0.875])
    expected = other(x, c, [start[:, None], end[:, None]] if kind == "lsd" else None)
    torch.testing.assert_close(ours(x, 1 - start, c, 1 - end), -expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_hoisted_heads_equal_the_plain_ones(kind, ragged):
    head = head_of(kind)
    levels = torch.tensor([0.9, 0.5, 0.2, 0.1])
    levels = torch.stack([levels, levels / 2, levels], 1) if ragged else levels
    x, c = rows(3, 6), rows(3, CONTEXT)
    step = head.hoist(levels, c)
    ends = torch.cat([levels[1:], torch.zeros_like(levels[:1])])
    for row in range(4):
        level = levels[row].expand(3)
        expected = head(x, level, c, ends[row].expand(3)) if kind == "pocket" else head(x, level, c)
        torch.testing.assert_close(step(row, x), expected, atol=2e-5, rtol=2e-5)


def test_a_flow_map_wants_levels_that_change():
    head = head_of("pocket")
    with pytest.raises(ValueError, match="set flow_map=False for solvers that call it several"):
        head.hoist(torch.tensor([0.5, 0.5]), rows(1, CONTEXT))
    head.flow_map = False
    x, c, levels = rows(1, 6), rows(1, CONTEXT), torch.tensor([0.5, 0.5])
    expected = head(x, levels[:1], c)
    torch.testing.assert_close(head.hoist(levels, c)(1, x), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"times must be 2 .* or 0, got 1"):
        PocketHead(4, 4, 8, 1, times=1)


@pytest.mark.parametrize("kind", forms())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_heads_load_from_whole_checkpoints(kind, dtype):
    head = head_of(kind).to(dtype)
    tensors = {f"model.head.{name}": value for name, value in head.state_dict().items()}
    tensors["model.lm_head.weight"] = rows(3, 3)
    found = load_head(tensors)
    assert type(found) is type(head) and not found.training
    x, c, level = rows(3, 6).to(dtype), rows(3, CONTEXT).to(dtype), torch.tensor([0.5])
    assert torch.equal(found(x, level, c), head(x, level, c))
    assert not any(p.requires_grad for p in found.parameters())


def test_a_mar_checkpoint_with_learned_variance():
    head = randomise(DiffusionHead(6, CONTEXT, 16, 2, out=12))
    found = load_head({f"net.{name}": value for name, value in head.state_dict().items()}, "net.")
    assert found(rows(2, 6), LEVELS[:1], rows(2, CONTEXT)).shape == (2, 12)


def test_every_form_is_tested_and_told_from_the_others():
    """The mark of a form is in no other's checkpoints."""
    assert {*forms(), "edm"} == set(KINDS)
    for kind, form in forms().items():
        names = head_of(kind).state_dict()
        assert [other for other in forms() if forms()[other].marks.own in names] == [kind]
        assert form.marks.input in names


def test_one_name_does_not_ask_for_a_million_blocks():
    tensors = dict(head_of("mar").state_dict())
    blocks = count_modules(tensors, "res_blocks")
    tensors["res_blocks.999999.in_ln.weight"] = rows(32)
    assert count_modules(tensors, "res_blocks") == blocks + 1
    with pytest.raises(CheckpointError, match=rf"lacks res_blocks\.{blocks}\.adaLN_modulation"):
        load_head(tensors)


def test_a_head_keeps_the_values_of_a_float64_checkpoint():
    tensors = {name: t.double() / 3 for name, t in head_of("mar").state_dict().items()}
    for name, value in load_head(tensors).state_dict().items():
        assert value.dtype == torch.float64 and torch.equal(value, tensors[name])
        assert value.data_ptr() != tensors[name].data_ptr()


def test_wrong_checkpoints_are_named():
    tensors = dict(head_of("mar").state_dict())
    with pytest.raises(CheckpointError, match=r"no diffusion head: expected the names of MAR"):
        load_head({"weight": rows(2)})
    with pytest.raises(CheckpointError, match=r"no diffusion head at prefix 'net\.'"):
        load_head(tensors, "net.")
    two = {f"{p}{name}": value for p in ("a.", "b.") for name, value in tensors.items()}
    with pytest.raises(CheckpointError, match=r"several diffusion heads: pass prefix, one of a\."):
        load_head(two)
    flat = tensors | {"input_proj.weight": rows(32)}
    with pytest.raises(CheckpointError, match="the mar head has shapes that no such head has: not"):
        load_head(flat)
    del tensors["cond_embed.weight"]
    with pytest.raises(CheckpointError, match="the mar head lacks cond_embed.weight"):
        load_head(tensors)
    tensors = dict(head_of("vibevoice").state_dict())
    del tensors["layers.1.norm.weight"]
    with pytest.raises(CheckpointError, match="the vibevoice head lacks layers.1.norm.weight"):
        load_head(tensors)
    tensors["layers.1.norm.weight"] = rows(31)
    with pytest.raises(CheckpointError, match=r"must have shape \[32\] by the config, got \[31\]"):
        load_head(tensors)
