"""The fused schedulers give diffusers' samples, within 1e-5 over whole loops on the same noise.

Red with a wrong coefficient, a shifted level, a forgotten clip or a lost memory.
"""

from __future__ import annotations

import diffusers
import pytest
import torch

from ardiff.integrations import diffusers as ours
from tests.integrations._support.diffusers_cases import ddpm_loop, loop, start

SPACINGS = ("linspace", "leading", "trailing")
PREDICTIONS = ("epsilon", "sample", "v_prediction")
VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "learned", "learned_range")


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Within 1e-5, or 1e-5 of the largest element where the loop has blown it up."""
    assert expected.isfinite().all()
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-5)


def check_ddpm(monkeypatch, steps=12, timesteps=None, width=None, **config):
    theirs, mine = diffusers.DDPMScheduler(**config), ours.FusedDDPMScheduler(**config)
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(None if timesteps else steps, timesteps=timesteps)
    assert torch.equal(theirs.timesteps, mine.timesteps)
    width = width or 1 + str(config.get("variance_type")).startswith("learned")
    x, noises = start(len(theirs.timesteps))
    if config.get("variance_type") == "learned":  # a variance, not a number in [-1, 1]
        monkeypatch.setattr(torch, "cos", lambda x: 0.1 + 0.1 * torch.sigmoid(x))
    expected = ddpm_loop(theirs, x, noises, width, monkeypatch)
    assert_equal(loop(mine, x, noises, width), expected)


@pytest.mark.parametrize(
    "beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"]
)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddpm(prediction, spacing, beta_schedule, monkeypatch):
    config = {"prediction_type": prediction, "timestep_spacing": spacing}
    check_ddpm(monkeypatch, **config, beta_schedule=beta_schedule)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("variance", VARIANCES)
def test_ddpm_variances(variance, prediction, monkeypatch):
    config = {"variance_type": variance, "prediction_type": prediction, "clip_sample": False}
    check_ddpm(
        monkeypatch, **config, timestep_spacing="linspace", beta_schedule="squaredcos_cap_v2"
    )


@pytest.mark.parametrize(
    "config",
    [
        {"clip_sample_range": 0.3},
        {"thresholding": True, "sample_max_value": 1.5},
        {"thresholding": True, "variance_type": "learned_range", "prediction_type": "v_prediction"},
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}
        | {"prediction_type": "v_prediction"},
        {"trained_betas": [0.01 + 0.001 * i for i in range(50)], "num_train_timesteps": 50},
        {"steps_offset": 1},
        {"variance_type": None},  # as from a saved DPMSolverMultistepScheduler
        {"timesteps": [900, 500, 499, 3]},
        {"steps": 1},
        {"steps": 1000},
    ],
    ids=lambda c: "-".join(map(str, c)),
)  # fmt: skip
def test_ddpm_options(config, monkeypatch):
    check_ddpm(monkeypatch, **config)


def check_dpm(steps=12, **config):
    theirs = diffusers.DPMSolverMultistepScheduler(**config)
    mine = ours.FusedDPMSolverMultistepScheduler(**config)
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(steps)
    x, noises = start(steps)
    assert_equal(loop(mine, x, noises), loop(theirs, x, noises))


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("prediction", [*PREDICTIONS, "flow_prediction"])
def test_dpm(prediction, beta_schedule, spacing, algorithm):
    check_dpm(
        algorithm_type=algorithm, timestep_spacing=spacing, beta_schedule=beta_schedule,
        prediction_type=prediction,
    )  # fmt: skip


@pytest.mark.parametrize("steps", [1, 3, 12, 25])
@pytest.mark.parametrize(
    "config",
    [
        {"solver_order": 1, "algorithm_type": "sde-dpmsolver++"},
        {"solver_order": 3},
        {"solver_order": 3, "lower_order_final": False, "final_sigmas_type": "sigma_min"},
        {"solver_type": "heun"},
        {"solver_type": "heun", "algorithm_type": "sde-dpmsolver++", "euler_at_final": True},
        {"thresholding": True, "sample_max_value": 1.5},
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        {"use_karras_sigmas": True, "beta_schedule": "scaled_linear"},
        {"use_exponential_sigmas": True},
        {"use_lu_lambdas": True},
        {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"},
        {"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2"},
    ],
    ids=lambda c: "-".join(map(str, [*c, *c.values()])),
)
def test_dpm_options(config, steps):
    if config.get("use_karras_sigmas") and steps == 1:
        steps = 2  # diffusers' ramp of one sigma is its largest and smallest at once
    check_dpm(steps, **config)


def test_dpm_from_the_middle():
    """As image-to-image pipelines begin: the first step there is of order one."""
    x, noises = start(12)
    found = []
    for kind in (diffusers.DPMSolverMultistepScheduler, ours.FusedDPMSolverMultistepScheduler):
        scheduler = kind(algorithm_type="sde-dpmsolver++")
        scheduler.set_timesteps(20)
        scheduler.set_begin_index(8)
        y = scheduler.add_noise(x, noises[0], scheduler.timesteps[8:9])
        for i, t in enumerate(scheduler.timesteps[8:]):
            out = torch.tanh(y) * 0.7
            y = scheduler.step(out, t, y, variance_noise=noises[i]).prev_sample
        found.append(y)
    assert_equal(found[1], found[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["DDPMScheduler", "DPMSolverMultistepScheduler"])
def test_other_dtypes(name, dtype, monkeypatch):
    """One step, within the rounding of the coarser dtype; float64 is computed in float32."""
    theirs, mine = getattr(diffusers, name)(), getattr(ours, f"Fused{name}")()
    x, noises = (t.to(dtype) for t in start(1))
    out = 0.5 * x
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(10)
    t = mine.timesteps[4]
    if name == "DDPMScheduler":
        module = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
        monkeypatch.setattr(module, lambda *a, **k: noises[0])
        expected = theirs.step(out, t, x)
    else:
        expected = theirs.step(out, t, x)
    found = mine.step(out, t, x, variance_noise=noises[0])
    assert found.prev_sample.dtype == dtype
    bound = 1e-5 + 4 * torch.finfo(dtype).eps * float(expected.prev_sample.abs().max())
    assert (found.prev_sample - expected.prev_sample).abs().max() < bound
