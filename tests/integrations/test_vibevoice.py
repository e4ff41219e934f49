"""VibeVoice of transformers with its head loop replaced: the same latents, and no traces."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn
from transformers.generation.streamers import BaseStreamer
from transformers.models.vibevoice import generation_vibevoice

from ardiff.integrations.vibevoice import accelerate, restore
from tests import ROOT
from tests.integrations._support.tiny_transformers import cosine, speak, token, vibevoice, worst

PROMPTS = [[5, 6, 7, 8, 2], [9, 10, 2], [11, 12, 13, 2]]
FRAMES = [5, 3, 4]
# float32 latents of a magnitude of 5, fed back through the language model for five tokens.
SAME = 1e-4


@pytest.fixture(scope="module")
def model():
    return vibevoice()


@pytest.fixture(autouse=True)
def _stock(model):
    yield
    restore(model)


def test_generate_gives_the_same_latents_and_audio(model):
    latents, audio = speak(model, PROMPTS, FRAMES)
    other, _ = speak(model, PROMPTS, FRAMES, torch_seed=2)
    accelerate(model)
    found, spoken = speak(model, PROMPTS, FRAMES)
    assert [len(t) for t in found] == FRAMES
    assert worst(found, latents) < SAME < 0.1 < worst(other, latents)
    assert worst(spoken, audio) < 1e-4 * max(float(a.abs().max()) for a in audio)


def test_restore_gives_the_stock_bits(model):
    before, weights = set(vars(model)), list(model.state_dict())
    latents, _ = speak(model, PROMPTS[:1], FRAMES[:1])
    accelerate(model)
    assert list(model.state_dict()) == weights and set(vars(model)) != before
    found, _ = speak(model, PROMPTS[:1], FRAMES[:1])
    assert not torch.equal(found[0], latents[0])
    restore(model)
    restore(model)
    assert set(vars(model)) == before and not any(p.requires_grad for p in model.parameters())
    assert torch.equal(speak(model, PROMPTS[:1], FRAMES[:1])[0][0], latents[0])


@pytest.mark.parametrize("scale", [1.0, 1.3, 3.0])
@pytest.mark.parametrize("steps", [1, 10, 20])
def test_steps_and_guidance(model, steps, scale):
    expected = token(model, steps=steps, scale=scale)
    accelerate(model)
    found = token(model, steps=steps, scale=scale)
    assert worst([found], [expected]) < SAME
    assert worst([token(model, steps=steps, scale=scale + 0.1)], [expected]) > 1e-2


SCHEDULES = {
    "epsilon": {"prediction_type": "epsilon", "beta_schedule": "linear"},
    "first-order": {"solver_order": 1},
    "third-order": {"solver_order": 3, "lower_order_final": False},
    "heun": {"solver_type": "heun", "timestep_spacing": "trailing"},
    "euler-at-final": {"use_lu_lambdas": True, "euler_at_final": True},
    "flow": {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 2.0},
    "ends-early": {"final_sigmas_type": "sigma_min", "timestep_spacing": "leading"},
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(model, name):
    scheduler = cosine(**SCHEDULES[name])
    expected = token(model, scheduler=scheduler)
    # Predicted noise over a small alpha gives latents of hundreds, whose last place is 6e-5.
    size = max(1.0, float(expected.abs().max()))
    accelerate(model)
    assert worst([token(model, scheduler=scheduler)], [expected]) < SAME * size
    assert worst([token(model)], [expected]) > 1e-2 * size


def test_a_batch_is_each_sample_alone(model):
    """With addressed noise; the tolerance is of the language model's batched products."""
    handle = accelerate(model, seed=3, sample_ids=[4, 0, 9])
    together, _ = speak(model, PROMPTS, FRAMES)
    order = [2, 0, 1]
    handle.sample_ids = [[4, 0, 9][i] for i in order]
    turned, _ = speak(model, [PROMPTS[i] for i in order], [FRAMES[i] for i in order], torch_seed=5)
    assert worst(turned, [together[i] for i in order]) < SAME
    for prompt, frames, own, batched in zip(PROMPTS, FRAMES, (4, 0, 9), together, strict=True):
        handle.sample_ids = [own]
        (alone,), _ = speak(model, [prompt], [frames], torch_seed=6)
        assert worst([alone], [batched]) < SAME
    handle.sample_ids = [5]
    (other,), _ = speak(model, PROMPTS[:1], FRAMES[:1])
    assert worst([other], together[:1]) > 0.1


def test_addressed_noise_differs_from_token_to_token_and_seed_to_seed(model):
    accelerate(model, seed=3, batch_invariant=True)
    handle = model._ardiff_accelerator
    handle.begin(3, torch.device("cpu"))
    first, second = token(model), token(model)
    handle.begin(3, torch.device("cpu"))
    assert torch.equal(token(model), first) and worst([second], [first]) > 0.1
    handle.begin(1, torch.device("cpu"))
    assert worst([token(model, rows=1)], [first[:1]]) > 0.1  # other conditions
    handle.begin(3, torch.device("cpu"))
    before = torch.manual_seed(0).get_state()
    token(model)
    assert torch.equal(torch.get_rng_state(), before)
    restore(model)
    accelerate(model, seed=4).begin(3, torch.device("cpu"))
    assert worst([token(model)], [first]) > 0.1


@pytest.mark.parametrize("solver", ["rtk-uld", "rtk-mala", "ddpm"])
def test_solvers_by_name_draw_from_the_global_generator(model, solver):
    accelerate(model, solver=solver)
    first, again, other = (token(model, steps=24, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and worst([other], [first]) > 0.1
    assert first.isfinite().all()


def test_the_deterministic_solver_of_a_name_nears_the_scheduler(model):
    """DPM-Solver++ on another grid of the same schedule, both at 200 steps."""
    expected = token(model, steps=200)
    accelerate(model, solver="dpmpp-2m", ratio_max=1e4, ratio_min=0.002)
    assert worst([token(model, steps=200)], [expected]) < 0.15


def test_a_stochastic_scheduler_takes_addressed_noise(model):
    scheduler = cosine(algorithm_type="sde-dpmsolver++")
    accelerate(model)
    first, again, other = (token(model, scheduler=scheduler, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and worst([other], [first]) > 0.1


def test_bfloat16_errs_at_most_twice_as_much_as_stock(model):
    exact, half = token(model), copy.deepcopy(model).bfloat16()
    theirs = worst([token(half).float()], [exact])
    accelerate(half)
    assert model._sample_audio_latent.__func__ is type(model)._sample_audio_latent
    assert 1e-4 < worst([token(half).float()], [exact]) <= 2 * theirs
    restore(half)
    accelerate(half, weights="int8")
    assert worst([token(half).float()], [exact]) <= 4 * theirs


def test_changed_weights_are_followed(model):
    own = copy.deepcopy(model)
    accelerate(own)
    token(own)
    with torch.no_grad():
        own.model.diffusion_head.cond_proj.weight.mul_(2)
    replaced = own.model.diffusion_head.layers[0].linear
    replaced.weight = nn.Parameter(replaced.weight * 0.5, requires_grad=False)
    copied = copy.deepcopy(own)
    found = token(own)
    assert torch.equal(token(copied), found)
    copied.model.diffusion_head.cond_proj.weight.zero_()
    assert torch.equal(token(own), found) and not torch.equal(token(copied), found)
    restore(own)
    assert worst([token(own)], [found]) < SAME


class Tokens(BaseStreamer):
    def __init__(self) -> None:
        self.values = []

    def put(self, value) -> None:
        self.values.append(value.flatten().tolist())

    def end(self) -> None:
        self.values.append("end")


def test_progress_and_streamer_are_told_the_same(model, monkeypatch):
    told = []

    class Bar:
        def __init__(self, **options) -> None:
            told.append(options)

        def update(self, n: int) -> None:
            told.append(n)

        def close(self) -> None:
            told.append("closed")

    monkeypatch.setattr(generation_vibevoice.logging, "tqdm", Bar)
    found = []
    for prepare in (restore, accelerate):
        prepare(model)
        told.clear()
        streamer = Tokens()
        options = {"monitor_progress": True, "streamer": streamer}
        speak(model, PROMPTS[:1], [3], **options)
        found.append((list(told), streamer.values))
    assert found[0] == found[1] and found[0][0][-1] == "closed" and len(found[0][1]) == 6


def test_the_page_runs():
    text = (ROOT / "docs/integrations/vibevoice.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict = {}
    for block in blocks:
        exec(compile(block, "vibevoice.md", "exec"), names)
    assert len(blocks) == 3 and names["audio"][0].isfinite().all()
