"""What VibeVoice's accelerate refuses, and how it says so."""

from __future__ import annotations

import copy
import importlib
import sys

import pytest
import torch
from diffusers import UniPCMultistepScheduler
from torch import nn

from ardiff.integrations import _accelerator
from ardiff.integrations.vibevoice import accelerate, restore
from tests.integrations._support.tiny_transformers import cosine, speak, vibevoice

PROMPT = [[5, 6, 7, 8, 2]]


@pytest.fixture(scope="module")
def model():
    return vibevoice()


@pytest.fixture(autouse=True)
def _stock(model):
    yield
    restore(model)


def test_accelerating_again(model):
    handle = accelerate(model, seed=3)
    handle.sample_ids = [7]
    assert accelerate(model, seed=3) is handle and handle.sample_ids is None
    with pytest.raises(RuntimeError, match=r"accelerated already, .*seed=3.*; call restore"):
        accelerate(model, seed=4)
    restore(model)
    assert accelerate(model, seed=4) is not handle


def test_something_else_in_the_way(model):
    model._sample_audio_latent = model._sample_audio_latent
    try:
        with pytest.raises(RuntimeError, match="_sample_audio_latent .* was replaced by something"):
            accelerate(model)
    finally:
        del model._sample_audio_latent


def test_other_models_are_refused(model):
    with pytest.raises(TypeError, match="expected a transformers VibeVoiceForCond.*, got Linear"):
        accelerate(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="expected a head with hidden_act=silu, got 'gelu'"):
        accelerate(vibevoice(hidden_act="gelu"))


def test_other_heads_are_refused(model):
    def changed() -> tuple:
        own = copy.deepcopy(model)
        return own, own.model.diffusion_head

    own, head = changed()
    head.layers[0].ffn.lora = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="not the known one, perhaps .* has layers.0.ffn.lora"):
        accelerate(own)
    own, head = changed()
    head.layers[0].register_forward_hook(lambda *a: None)
    with pytest.raises(ValueError, match="forward hooks, which would not be called"):
        accelerate(own)
    own, head = changed()
    head.layers[1].act_fn = nn.Tanh()
    with pytest.raises(RuntimeError, match="computes something else than the head known to ardiff"):
        accelerate(own)
    own, head = changed()
    head.cond_proj.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="the head's weights give NaN or infinity"):
        accelerate(own)
    own, head = changed()
    head.to("meta")
    with pytest.raises(ValueError, match=r"has no weights here \(they are offloaded\)"):
        accelerate(own)
    with pytest.raises(ValueError, match="the parameters of VibeVoiceHead are float64"):
        accelerate(copy.deepcopy(model).double())


def test_other_versions_are_refused(model, monkeypatch):
    kind = type(model)

    def other(self, condition, noise_scheduler):
        raise AssertionError

    monkeypatch.setattr(kind, "_sample_audio_latent", other)
    with pytest.raises(RuntimeError, match="takes condition, noise_scheduler in transformers 5"):
        accelerate(model)
    monkeypatch.delattr(kind, "_sample_audio_latent")
    monkeypatch.setattr(_accelerator.importlib, "import_module", lambda name: object())
    with pytest.raises(ImportError, match="has no VibeVoiceFor.*; expected 5.19 or later: pip"):
        accelerate(model)


BAD = {
    "weights": (dict(weights="int4"), "None or one of float32, bfloat16, int8, got 'int4'"),
    "ids": (dict(sample_ids=[1]), "pass seed too"),
    "id": (dict(seed=1, sample_ids=[-1]), r"sample_ids must be in \[0, 2\^43\), got -1"),
    "solver": (dict(solver="rtk"), "unknown solver 'rtk'; known solvers: "),
    "option": (dict(solver="rtk-uld", inners=2), "does not take 'inners'; it takes: stages"),
    "orphan": (dict(stages=2), "'stages' is an option of a solver: pass solver too"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_named(model, case):
    options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        accelerate(model, **options)
    assert "_sample_audio_latent" not in vars(model)


def test_bad_schedulers_are_named_before_the_first_token(model):
    accelerate(model)
    for scheduler, message in (
        (UniPCMultistepScheduler(), "steps of UniPCMultistepScheduler are not known"),
        (cosine(thresholding=True), "has thresholding=True, expected False"),
        (object.__new__(type("Light", (), {"set_timesteps": 0, "step": 0, "timesteps": 0})),
         "steps of Light are not known"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{message}.*; .*restore|{message}.*: .*restore"):
            speak(model, PROMPT, [2], noise_scheduler=scheduler)
    restore(model)
    accelerate(model, solver="rtk-uld")
    with pytest.raises(ValueError, match="but this DPMSolver.* has use_flow_sigmas=True"):
        speak(model, PROMPT, [2], noise_scheduler=cosine(use_flow_sigmas=True))


def test_sample_ids_of_another_number_are_refused(model):
    accelerate(model, seed=1, sample_ids=[1, 2])
    with pytest.raises(ValueError, match="sample_ids must be 1 integers, one per sample"):
        speak(model, PROMPT, [2])


def test_gradients_are_refused(model):
    accelerate(model)
    c = torch.randn(1, 32, requires_grad=True)
    with pytest.raises(RuntimeError, match="an accelerated head has no gradients"):
        model._sample_audio_latent(c, c, cosine(), 10, 1.0)


def test_without_transformers_the_requirement_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "ardiff.integrations._accelerator")
    monkeypatch.delitem(sys.modules, "ardiff.integrations.vibevoice")
    with pytest.raises(ImportError, match=r"pip install 'transformers>=5\.21'"):
        importlib.import_module("ardiff.integrations.vibevoice")
    monkeypatch.undo()
    assert sys.modules["ardiff.integrations.vibevoice"].accelerate is accelerate
