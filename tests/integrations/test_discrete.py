"""Tables of discrete schedules against diffusers' own schedulers, on the same noise.

The model is a fixed smooth function; a wrong coefficient, a shifted level or a lost memory moves
the samples by far more than the bound, which is float32 rounding over the loop.
"""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_ddpm

from ardiff.tables import diffusers_schedules as discrete
from ardiff_kernels import ops

KEY, STREAM = torch.zeros(1, dtype=torch.int64), torch.arange(3)


def model(x, t, width=1):
    out = torch.tanh(0.8 * x + 0.001 * float(t)) - 0.2 * x
    return torch.cat([out] + [torch.cos(3 * x)] * (width - 1), 1)


def run(table, x, noises, width=1, clamp=None):
    device = table.to("cpu")
    memory = torch.full((len(x), x.shape[1] * table.memories), torch.nan)
    for i, row in enumerate(device.row.split(1)):
        out = model(x, table.level[i], width)
        x, memory, _ = ops.diffusion_step(
            x, out, memory, device.coef, row, row, KEY, STREAM, noise=noises[i], x0_clamp=clamp
        )
    return x


def theirs(scheduler, x, noises, monkeypatch, width=1):
    given = iter(noises)
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *a, **k: next(given)[..., None])
    for t, noise in zip(scheduler.timesteps, noises, strict=True):
        own = {"variance_noise": noise[..., None]} if hasattr(scheduler, "sigmas") else {}
        out = model(x, t, width)[..., None]
        x = scheduler.step(out, t, x[..., None], **own).prev_sample[..., 0]
    return x


def start(steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    return draw(3, 5), draw(steps, 3, 5)


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize(
    "variance", ["fixed_small", "fixed_small_log", "fixed_large", "learned_range"]
)
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_ddpm_table(prediction, variance, spacing, monkeypatch):
    steps = 20
    scheduler = diffusers.DDPMScheduler(
        prediction_type=prediction, variance_type=variance, timestep_spacing=spacing
    )
    scheduler.set_timesteps(steps)
    table = discrete.ddpm_table(
        scheduler.alphas_cumprod.numpy(), scheduler.timesteps.tolist(),
        prediction=prediction, variance=variance,
    )  # fmt: skip
    x, noises = start(steps)
    width = 1 + (variance == "learned_range")
    expected = theirs(scheduler, x, noises, monkeypatch, width)
    torch.testing.assert_close(run(table, x, noises, width, 1.0), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"solver_order": 1},
        {"solver_order": 3},
        {"solver_type": "heun"},
        {"algorithm_type": "sde-dpmsolver++"},
        {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun", "euler_at_final": True},
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 1, "timestep_spacing": "trailing"},
        {"lower_order_final": False, "final_sigmas_type": "sigma_min"},
        {"use_karras_sigmas": True, "beta_schedule": "scaled_linear"},
        {"use_flow_sigmas": True, "flow_shift": 3.0},
        {"use_lu_lambdas": True, "solver_order": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("steps", [4, 20])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "flow_prediction"])
def test_dpmpp_table(prediction, steps, options, monkeypatch):
    scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type=prediction, **options)
    scheduler.set_timesteps(steps)
    c = scheduler.config
    table = discrete.dpmpp_table(
        scheduler.sigmas.numpy(), scheduler.timesteps.tolist(),
        prediction=prediction.removesuffix("_prediction") if "flow" in prediction else prediction,
        algorithm=c.algorithm_type, order=c.solver_order, solver=c.solver_type,
        lower_order_final=c.lower_order_final, euler_at_final=c.euler_at_final,
        final_sigmas_type=c.final_sigmas_type, flow=c.use_flow_sigmas,
    )  # fmt: skip
    x, noises = start(steps)
    expected = theirs(scheduler, x, noises, monkeypatch)
    found = run(table, x, noises)
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", discrete.BETA_SCHEDULES)
def test_beta_schedules(name):
    theirs = diffusers.DDPMScheduler(beta_schedule=name).betas
    assert np.abs(discrete.beta_schedule(name) - theirs.numpy()).max() < 1e-6


def test_zero_terminal_snr():
    betas = discrete.zero_terminal_snr(discrete.beta_schedule("scaled_linear"))
    theirs = diffusers.DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=1e-4, rescale_betas_zero_snr=True
    ).betas
    assert betas[-1] == 1 and np.abs(betas - theirs.numpy()).max() < 1e-4


def test_refusals():
    bars = np.cumprod(1 - discrete.beta_schedule("linear"))
    with pytest.raises(ValueError, match="descending order within \\[0, 999\\]"):
        discrete.ddpm_table(bars, [1000, 3], prediction="epsilon")
    with pytest.raises(ValueError, match="unknown variance 'small'"):
        discrete.ddpm_table(bars, [3], prediction="epsilon", variance="small")
    with pytest.raises(ValueError, match="unknown algorithm 'dpmsolver'; known: dpmsolver\\+\\+"):
        discrete.dpmpp_table([1.0, 0.0], [3], prediction="epsilon", algorithm="dpmsolver")
    with pytest.raises(ValueError, match="one sigma more than timesteps, got 1 and 1"):
        discrete.dpmpp_table([1.0], [3], prediction="epsilon")
    with pytest.raises(ValueError, match="fall within \\(0, 1\\)"):
        discrete.DiscretePath([0.9, 0.95])
