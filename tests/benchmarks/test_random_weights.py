"""Random weights: what a model computes itself stays, the rest keeps variances."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks import _random_weights, systems_vibevoice  # noqa: E402


@pytest.fixture(scope="module")
def model():
    return systems_vibevoice.build("tiny", "float32", 0)


def test_buffers_are_those_of_the_model(model):
    from transformers import VibeVoiceForConditionalGeneration

    made = VibeVoiceForConditionalGeneration(systems_vibevoice.config("tiny"))
    buffers = dict(made.named_buffers())
    assert buffers and all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())
    assert model.model.latent_scaling_factor == 1 and model.model.latent_bias_factor == 0
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


def test_parameters_by_kind(model):
    language_model, decoder = model.model.language_model, model.model.audio_tower.decoder
    assert (language_model.norm.weight == 1).all()
    assert (decoder.stem.stage[0].gamma == _random_weights.LAYER_SCALE).all()
    bias = language_model.layers[0].self_attn.q_proj.bias
    assert 0 < bias.abs().max() <= _random_weights.BIAS
    assert not any(p.requires_grad for p in model.parameters()) and not model.training
    parameters = dict(model.named_parameters())
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in parameters.values())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(300, 500), (64, 300)),
        (nn.Conv1d(40, 60, 7), (8, 40, 200)),
        (nn.ConvTranspose1d(40, 60, 8, stride=4), (8, 40, 200)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_keeps_the_variance(layer, shape):
    torch.manual_seed(0)
    _random_weights.fill(layer, 1)
    layer.requires_grad_(False).bias.zero_()
    assert layer(torch.randn(shape)).std() == pytest.approx(1, rel=0.1)


def test_a_seed_says_which_weights():
    made = [_random_weights.fill(nn.Linear(7, 9), seed).weight for seed in (0, 0, 1)]
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_tensors_larger_than_the_block_are_filled(monkeypatch):
    """And tensors of one model begin at different places of it."""
    monkeypatch.setattr(_random_weights, "BLOCK", 101)
    layers = nn.Sequential(nn.Linear(50, 60), nn.Linear(50, 60)).requires_grad_(False)
    _random_weights.fill(layers, 0)
    first, second = (layer.weight.flatten() for layer in layers)
    assert len(set(first.tolist())) == 101 and not torch.equal(first, second)
    assert first.std() == pytest.approx(50**-0.5, rel=0.2)


def test_the_default_dtype_is_given_back():
    def fails():
        raise KeyError("no model")

    with pytest.raises(KeyError):
        _random_weights.made(fails, torch.bfloat16)
    assert torch.get_default_dtype() == torch.float32
