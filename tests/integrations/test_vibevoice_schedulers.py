"""Schedulers of ardiff.integrations.diffusers in VibeVoice's own loop."""

from __future__ import annotations

import pytest
import torch

from ardiff.integrations.diffusers import FusedDPMSolverMultistepScheduler, RTKULDScheduler
from ardiff.integrations.vibevoice import accelerate
from tests.integrations._support.tiny_transformers import speak, vibevoice, worst

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
