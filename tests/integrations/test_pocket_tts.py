"""Pocket-TTS of transformers with its flow head replaced: the same latents, and no traces."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

from ardiff.integrations import _accelerator
from ardiff.integrations import vibevoice as vibevoice_integration
from ardiff.integrations.pocket_tts import accelerate, restore
from tests import ROOT
from tests.integrations._support.tiny_transformers import pocket_tts, say, vibevoice, worst

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12]]
SAME = 1e-4  # float32 latents of a magnitude of 5, fed back for five frames


@pytest.fixture(scope="module", params=["lsd", "drifting"])
def model(request):
    return pocket_tts(request.param)


@pytest.fixture(autouse=True)
def _stock(request):
    yield
    if "model" in request.fixturenames:
        restore(request.getfixturevalue("model"))


def frame(model, rows: int = 3, steps: int = 1, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    c = torch.randn(rows, 32, generator=generator).to(model.dtype)
    noise = torch.randn(rows, 8, generator=generator).to(model.dtype)
    with torch.no_grad():
        found = model.sample_latent(c, noise, steps)
    assert found.shape == (rows, 8) and found.dtype == model.dtype
    return found


@pytest.mark.parametrize("steps", [1, 3])
def test_generate_gives_the_same_latents_and_restore_the_bits(model, steps):
    before, weights = set(vars(model)), list(model.state_dict())
    expected = say(model, PROMPTS, 5, num_flow_steps=steps)
    other = say(model, PROMPTS, 5, num_flow_steps=steps, torch_seed=2)
    accelerate(model)
    assert list(model.state_dict()) == weights and set(vars(model)) != before
    found = say(model, PROMPTS, 5, num_flow_steps=steps)
    assert worst(found, expected) < SAME < 0.1 < worst(other, expected)
    silent = say(model, PROMPTS, 5, do_sample=False)
    restore(model)
    restore(model)
    assert set(vars(model)) == before
    assert worst(silent, say(model, PROMPTS, 5, do_sample=False)) < SAME
    again = say(model, PROMPTS, 5, num_flow_steps=steps)
    assert all(map(torch.equal, again, expected)) and not torch.equal(found[0], expected[0])


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_frame(model, steps):
    expected = frame(model, steps=steps)
    accelerate(model)
    assert worst([frame(model, steps=steps)], [expected]) < SAME
    if model.config.flow_head_config.flow_type == "lsd":
        assert worst([frame(model, steps=steps + 1)], [expected]) > 1e-2


def test_rows_are_each_alone_to_the_bit(model):
    accelerate(model, batch_invariant=True)
    together = frame(model)
    generator = torch.Generator().manual_seed(0)
    c, noise = torch.randn(3, 32, generator=generator), torch.randn(3, 8, generator=generator)
    with torch.no_grad():
        for i in range(3):
            alone = model.sample_latent(c[i : i + 1], noise[i : i + 1], 1)
            assert torch.equal(alone, together[i : i + 1])


def test_a_batch_is_each_sample_alone(model):
    """With addressed noise; the tolerance is of the backbone's batched products."""
    handle = accelerate(model, seed=3, sample_ids=[4, 0, 9])
    together = say(model, PROMPTS, 5)
    for prompt, own, batched in zip(PROMPTS, (4, 0, 9), together, strict=True):
        handle.sample_ids = [own]
        assert worst(say(model, [prompt], 5, torch_seed=6), [batched]) < SAME
    handle.sample_ids = [5]
    assert worst(say(model, PROMPTS[:1], 5), together[:1]) > 0.1


def test_addressed_noise_has_the_temperature_of_generate(model):
    """The first frame of a head that returns its noise, of 500 rows of 8: the variance, 4000 times
    its mean square, is chi-square; 1e-7 of false alarms is 5.3 of its deviations, 12%."""
    own = copy.deepcopy(model)
    drifts = own.config.flow_head_config.flow_type == "drifting"
    own.flow_head.final_layer.proj.weight.zero_()
    own.flow_head.final_layer.proj.bias.zero_()
    accelerate(own, seed=1)
    found = torch.cat(say(own, PROMPTS[:1] * 500, 1, temperature=0.5))
    variance = float(found.square().mean())
    assert variance == 0 if drifts else abs(variance - 0.5) < 0.06


def test_bfloat16_errs_at_most_twice_as_much_as_stock(model):
    exact, half = frame(model), copy.deepcopy(model).bfloat16()
    theirs = worst([frame(half).float()], [exact])
    accelerate(half)
    assert 1e-4 < worst([frame(half).float()], [exact]) <= 2 * theirs


def test_changed_weights_are_followed(model):
    own = copy.deepcopy(model)
    accelerate(own)
    before = frame(own)
    with torch.no_grad():
        own.flow_head.cond_proj.weight.mul_(2)
    found = frame(own)
    restore(own)
    assert worst([frame(own)], [found]) < SAME < 0.01 < worst([before], [found])


def test_accelerating_again(model):
    handle = accelerate(model, seed=3)
    assert accelerate(model, seed=3) is handle
    with pytest.raises(RuntimeError, match=r"accelerated already, .*seed=3.*; call restore"):
        accelerate(model)
    with pytest.raises(TypeError, match="accelerated by PocketTTSAccelerator, not VibeVoice"):
        vibevoice_integration.restore(model)


def test_what_does_not_fit_is_refused(monkeypatch):
    with pytest.raises(TypeError, match="expected a transformers PocketTTSForCond.*, got VibeVoi"):
        accelerate(vibevoice())
    model = pocket_tts()
    with pytest.raises(ValueError, match="pass seed too"):
        accelerate(model, sample_ids=[1])
    model.config.flow_head_config.hidden_act = "gelu"
    with pytest.raises(ValueError, match="expected a head with hidden_act=silu, got 'gelu'"):
        accelerate(model)
    model.config.flow_head_config.hidden_act = "silu"
    model.flow_head.layers[0].act_fn = nn.GELU()
    with pytest.raises(RuntimeError, match="computes something else than the head known to ardiff"):
        accelerate(model)
    monkeypatch.setattr(type(model), "sample_latent", lambda self, x: x)
    with pytest.raises(RuntimeError, match="sample_latent takes x in transformers 5.*, expected"):
        accelerate(model)
    monkeypatch.setattr(_accelerator.importlib, "import_module", lambda name: object())
    with pytest.raises(ImportError, match="has no PocketTTSFor.*; expected 5.21 or later: pip"):
        accelerate(model)


def test_steps_below_one_and_gradients_are_refused():
    model = pocket_tts()
    accelerate(model)
    with pytest.raises(ValueError, match="num_flow_steps must be 1 or more, got 0"):
        frame(model, steps=0)
    c = torch.randn(1, 32, requires_grad=True)
    with pytest.raises(RuntimeError, match="an accelerated head has no gradients"):
        model.sample_latent(c, torch.zeros(1, 8), 1)


def test_the_page_runs():
    text = (ROOT / "docs/integrations/pocket_tts.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict = {}
    for block in blocks:
        exec(compile(block, "pocket_tts.md", "exec"), names)
    assert len(blocks) == 2 and names["latents"][0].isfinite().all()
