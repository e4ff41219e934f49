"""The Euler, DDIM, LCM and UniPC schedulers give diffusers' samples on the same noise.

Within 1e-5 of the scale of what each step returns, over whole loops. Red with a wrong coefficient,
a shifted level, a forgotten clip or a lost memory.
"""

from __future__ import annotations

import inspect
import sys
import warnings

import diffusers
import numpy as np
import pytest
import torch

from ardiff.integrations import diffusers as ours
from tests.integrations._support.diffusers_cases import model, start

SPACINGS = ("leading", "trailing")
PREDICTIONS = ("epsilon", "sample", "v_prediction")
BETAS = ("linear", "scaled_linear")  # a cosine's sigma of 20,000 leaves float32 1e-3


def returned(scheduler, given: dict, first: int, options: dict, monkeypatch) -> torch.Tensor:
    """What each step of a run returns, `[steps, outputs, *shape]`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler.set_timesteps(**given)
    x, noises = start(len(scheduler.timesteps))
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    if first:
        scheduler.set_begin_index(first)
        t = scheduler.timesteps[first : first + 1].expand(len(x))
        flow = hasattr(scheduler, "scale_noise") and "Flow" in type(scheduler).__name__
        x = scheduler.scale_noise(x, t, noises[0]) if flow else scheduler.add_noise(x, noises[0], t)
    module = sys.modules[inspect.getmodule(type(scheduler).__init__).__name__]
    takes = "sample_ids" in inspect.signature(scheduler.step).parameters
    draws = takes and "variance_noise" in inspect.signature(scheduler.step).parameters
    found = []
    for noise, t in zip(noises[first:], scheduler.timesteps[first:], strict=True):
        if draws:
            options = {**options, "variance_noise": noise}
        elif not takes:
            monkeypatch.setattr(module, "randn_tensor", lambda *a, n=noise, **k: n, raising=False)
        scales = hasattr(scheduler, "scale_model_input")
        scaled = scheduler.scale_model_input(x, t) if scales else x
        result = scheduler.step(model(scaled, t), t, x, **options)
        x = result.prev_sample
        found.append(torch.stack(list(result.values())))
    return torch.stack(found)


def check(name, monkeypatch, steps=9, first=0, given=None, step=None, **config) -> torch.Tensor:
    given, runs = given or {"num_inference_steps": steps}, []
    schedulers = getattr(diffusers, name)(**config), getattr(ours, f"Fused{name}")(**config)
    for scheduler in schedulers:
        runs.append(returned(scheduler, given, first, step or {}, monkeypatch))
    theirs, mine = schedulers
    assert torch.equal(theirs.timesteps, mine.timesteps)
    expected, found = runs
    assert expected.isfinite().all()
    scale = expected.abs().flatten(1).amax(1).clamp(min=1).view(-1, *[1] * (expected.dim() - 1))
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-5)
    return found


def cases(*configs: dict):
    return pytest.mark.parametrize(
        "config", configs, ids=lambda c: "-".join(map(str, [*c, *c.values()])) or "default"
    )


@pytest.mark.parametrize("beta_schedule", BETAS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_euler(prediction, spacing, beta_schedule, monkeypatch):
    config = {"timestep_spacing": spacing, "beta_schedule": beta_schedule}
    config["prediction_type"] = prediction
    check("EulerDiscreteScheduler", monkeypatch, **config)
    if prediction != "sample":  # which diffusers' ancestral steps do not have
        check("EulerAncestralDiscreteScheduler", monkeypatch, **config)


@cases(
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
    {"use_karras_sigmas": True, "sigma_min": 0.03, "sigma_max": 20.0},
    {"final_sigmas_type": "sigma_min"},
    {"interpolation_type": "log_linear"},
    {"timestep_type": "continuous", "prediction_type": "v_prediction", "use_karras_sigmas": True},
    {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    | {"prediction_type": "v_prediction"},
    {"steps_offset": 1, "timestep_spacing": "leading"},
    {"given": {"timesteps": [900, 500, 20]}},
    {"given": {"sigmas": [14.6, 6.3, 2.2, 0.5, 0.0]}},
    {"steps": 1},
    {"first": 4},
)
def test_euler_options(config, monkeypatch):
    check("EulerDiscreteScheduler", monkeypatch, **config)


@cases(
    {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    | {"prediction_type": "v_prediction"},
    {"steps_offset": 1, "timestep_spacing": "leading"},
    {"steps": 1},
    {"first": 4},
)
def test_euler_ancestral_options(config, monkeypatch):
    check("EulerAncestralDiscreteScheduler", monkeypatch, **config)


FLOW = {
    "static": ({"shift": 3.0}, {}),
    "dynamic": ({"use_dynamic_shifting": True}, {"mu": 0.9}),
    "linear": ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, {"mu": 2.5}),
    "terminal": ({"use_dynamic_shifting": True, "shift_terminal": 0.1}, {"mu": 0.9}),
    "karras": ({"shift": 2.0, "use_karras_sigmas": True}, {}),
    "exponential": ({"shift": 2.0, "use_exponential_sigmas": True}, {}),
    "beta": ({"shift": 2.0, "use_beta_sigmas": True}, {}),
    "inverted": ({"invert_sigmas": True}, {}),
    "sigmas": ({"shift": 3.0}, {"sigmas": np.linspace(1, 1 / 8, 8).tolist()}),
    "timesteps": ({}, {"timesteps": [1000.0, 700.0, 250.0, 3.0]}),
}


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("name", FLOW)
def test_flow_match_euler(name, stochastic, first, monkeypatch):
    config, given = FLOW[name]
    if name == "inverted" and stochastic:
        with pytest.raises(ValueError, match="stochastic_sampling has no inverted sigmas"):
            ours.FusedFlowMatchEulerDiscreteScheduler(**config, stochastic_sampling=True)
        return
    if not {"sigmas", "timesteps"} & given.keys():
        given = {"num_inference_steps": 9, **given}
    config = {**config, "stochastic_sampling": stochastic}
    check("FlowMatchEulerDiscreteScheduler", monkeypatch, given=given, first=first, **config)


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim(prediction, spacing, eta, monkeypatch):
    """Also with the data prediction clipped, of which the noise prediction is made or not."""
    config = {"prediction_type": prediction, "timestep_spacing": spacing}
    for clip in (False, True):
        for clipped in (False, True)[: 1 + clip]:
            step = {"eta": eta, "use_clipped_model_output": clipped}
            check("DDIMScheduler", monkeypatch, step=step, clip_sample=clip, **config)


@cases(
    {"set_alpha_to_one": False, "clip_sample": False},
    {"set_alpha_to_one": False, "step": {"eta": 1.0}},
    {"clip_sample_range": 0.3},
    {"thresholding": True, "sample_max_value": 1.5},
    {"thresholding": True, "sample_max_value": 1.5, "prediction_type": "v_prediction"}
    | {"step": {"use_clipped_model_output": True, "eta": 0.5}},
    {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    | {"prediction_type": "v_prediction", "clip_sample": False},
    {"beta_schedule": "squaredcos_cap_v2", "step": {"eta": 0.5}},
    {"trained_betas": [0.01 + 0.001 * i for i in range(50)], "num_train_timesteps": 50},
    {"steps_offset": 1, "steps": 7},
    {"steps": 1},
    {"steps": 100, "clip_sample": False},
)
def test_ddim_options(config, monkeypatch):
    check("DDIMScheduler", monkeypatch, **config)


@pytest.mark.parametrize("steps", [1, 4, 7])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_lcm(prediction, steps, monkeypatch):
    config = {"prediction_type": prediction, "timestep_scaling": 0.01}  # where c_skip counts
    check("LCMScheduler", monkeypatch, steps=steps, **config)
    check("LCMScheduler", monkeypatch, steps=steps, prediction_type=prediction)


@cases(
    {"original_inference_steps": 100, "beta_schedule": "squaredcos_cap_v2"},
    {"clip_sample": True, "clip_sample_range": 0.4},
    {"thresholding": True, "sample_max_value": 1.5},
    {"given": {"num_inference_steps": 6, "original_inference_steps": 25}},
    {"given": {"num_inference_steps": 6, "strength": 0.5}},
    {"given": {"timesteps": [999, 759, 499, 259]}},
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    {"first": 2},
)
def test_lcm_options(config, monkeypatch):
    check("LCMScheduler", monkeypatch, **config)


@pytest.mark.parametrize("solver", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", [*PREDICTIONS, "flow_prediction"])
def test_unipc(prediction, spacing, order, solver, monkeypatch):
    config = {"solver_order": order, "solver_type": solver, "prediction_type": prediction}
    if solver == "bh1":  # with which diffusers' last step to sigma = 0 is NaN
        config["final_sigmas_type"] = "sigma_min"
    check("UniPCMultistepScheduler", monkeypatch, timestep_spacing=spacing, **config)


@pytest.mark.parametrize("order", [2, 3])
@cases(
    {"use_karras_sigmas": True, "beta_schedule": "scaled_linear"},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
    {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"},
    {"use_flow_sigmas": True, "use_dynamic_shifting": True, "prediction_type": "flow_prediction"}
    | {"shift_terminal": 0.1, "given": {"num_inference_steps": 9, "mu": 0.8}},
    {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 2.0}
    | {"given": {"sigmas": np.linspace(1, 1 / 8, 8)}},
    {"disable_corrector": [0, 3]},
    {"lower_order_final": False, "final_sigmas_type": "sigma_min"},
    {"thresholding": True, "sample_max_value": 1.5},
    {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"steps": 1},
    {"steps": 2},
    {"steps": 25},
    {"first": 4},
)
def test_unipc_options(config, order, monkeypatch):
    check("UniPCMultistepScheduler", monkeypatch, solver_order=order, **config)
