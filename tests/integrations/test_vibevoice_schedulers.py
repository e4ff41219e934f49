"""Schedulers of ardiff.integrations.diffusers in VibeVoice's own loop."""

from __future__ import annotations

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from ardiff.integrations.diffusers import FusedDPMSolverMultistepScheduler, RTKULDScheduler
from ardiff.integrations.vibevoice import accelerate, restore
from tests.integrations._support.tiny_transformers import cosine, speak, token, vibevoice, worst

PROMPTS = [[5, 6, 7, 8, 2], [9, 10, 2], [11, 12, 13, 2]]
FRAMES = [5, 3, 4]
SAME = 1e-4  # as in test_vibevoice.py


def test_our_schedulers_in_the_stock_loop():
    """`generate(noise_scheduler=...)` of a model as it is, and what accelerate does with them."""
    model = vibevoice()
    ours = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
    fused, rtk = FusedDPMSolverMultistepScheduler(**ours), RTKULDScheduler(**ours)
    expected, _ = speak(model, PROMPTS, FRAMES)
    found, _ = speak(model, PROMPTS, FRAMES, noise_scheduler=fused)
    assert worst(found, expected) < SAME
    drawn, calls = [], []
    hook = model.model.diffusion_head.register_forward_hook(lambda *a: calls.append(1))
    for torch_seed in (1, 1, 2):
        options = {"noise_scheduler": rtk, "num_diffusion_steps": 21, "torch_seed": torch_seed}
        drawn += speak(model, PROMPTS[:1], [2], **options)[0]
    hook.remove()
    assert len(calls) == 3 * 2 * 21 and all(t.isfinite().all() for t in drawn)
    assert torch.equal(drawn[0], drawn[1]) and worst([drawn[2]], [drawn[0]]) > 0.1
    accelerate(model)
    found, _ = speak(model, PROMPTS, FRAMES, noise_scheduler=fused)
    assert worst(found, expected) < SAME
    with pytest.raises(ValueError, match="steps of RTKULDScheduler are not known to accelerate"):
        speak(model, PROMPTS[:1], [2], noise_scheduler=rtk)


CHANGES = [
    {"algorithm_type": "sde-dpmsolver++"},
    {"solver_order": 1},
    {"solver_type": "heun"},
    {"prediction_type": "sample"},
    {"final_sigmas_type": "sigma_min", "lower_order_final": False},
    {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"},
]


@pytest.fixture(scope="module")
def model():
    return vibevoice()


@pytest.mark.parametrize("change", CHANGES, ids="-".join)
def test_a_changed_configuration_counts(model, change):
    """As in the stock loop, which reads the configuration at each token; and back again.

    Noise of the stochastic algorithm has another source: there the latents must change, and be
    those of a scheduler made with the option.
    """
    scheduler, fresh = cosine(), cosine(**change)
    stock = token(model, scheduler=scheduler)
    scheduler.register_to_config(**change)
    stock_changed = token(model, scheduler=scheduler)
    scheduler.register_to_config(**{name: cosine().config[name] for name in change})
    accelerate(model)
    before = token(model, scheduler=scheduler)
    scheduler.register_to_config(**change)
    after = token(model, scheduler=scheduler)
    assert torch.equal(after, token(model, scheduler=fresh))
    scheduler.register_to_config(**{name: cosine().config[name] for name in change})
    assert torch.equal(token(model, scheduler=scheduler), before)
    restore(model)
    assert worst([before], [stock]) < SAME
    assert worst([after], [before]) > 10 * SAME
    if "algorithm_type" not in change:
        assert worst([after], [stock_changed]) < SAME


def test_another_schedule_is_another_table(model):
    """Betas are not in the configuration where they are set by hand."""
    scheduler, other = cosine(), cosine()
    other.alphas_cumprod = DPMSolverMultistepScheduler().alphas_cumprod
    expected = token(model, scheduler=other)
    accelerate(model)
    token(model, scheduler=scheduler)
    found = token(model, scheduler=other)
    restore(model)
    assert worst([found], [expected]) < SAME
