"""`lcm`, `tcd` and `euler-ancestral` give the samples of diffusers' schedulers, noise for noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ardiff
from ardiff.loop.run import run
from ardiff.tables.diffusers_schedules import DiscretePath
from ardiff.tables.paths import get_path, output_from_data

diffusers = pytest.importorskip("diffusers")

SHAPE = (3, 6)
ORIGINAL = ("epsilon", "sample", "v_prediction")


def denoise(x, alpha, sigma):
    scaled = alpha * x / (alpha**2 + sigma**2)
    return 0.7 * torch.tanh(2 * scaled) + 0.2 * torch.sin(3 * scaled)


def theirs(made, path, levels, prediction, x, monkeypatch):
    """A scheduler's loop in float64 over the levels of its steps, and the normals that it drew."""
    drawn, at = {}, [0]
    generator = torch.Generator().manual_seed(8)

    def randn_tensor(*args, **kwargs):
        drawn[at[0]] = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
        return drawn[at[0]]

    monkeypatch.setattr(f"{type(made).__module__}.randn_tensor", randn_tensor)
    for i, t in enumerate(made.timesteps[: len(levels)]):
        at[0] = i
        alpha, sigma = float(path.alpha(levels[i])), float(path.sigma(levels[i]))
        out = output_from_data(prediction, alpha, sigma, x, denoise(x, alpha, sigma))
        x = made.step(out, t, x, return_dict=False)[0].double()
    noise = torch.zeros(len(levels), *SHAPE)
    for row, normals in drawn.items():
        noise[row] = normals.float()
    return x, noise


def ours(table, path, x, noise):
    def model(x, level, condition):
        alpha, sigma = float(path.alpha(float(level[0]))), float(path.sigma(float(level[0])))
        data = denoise(x, alpha, sigma)
        return output_from_data(table.prediction, alpha, sigma, x, data)

    place = {"key": torch.zeros(1, dtype=torch.int64), "stream": torch.arange(len(x))}
    return run(table, model, x.float(), noise=noise, **place).double()


def start():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def equal(found, want):
    return float((found - want).abs().max()) < 1e-5 * float(want.abs().max())


def steps_of(made, **timesteps):
    made.set_timesteps(**timesteps)
    return DiscretePath(made.alphas_cumprod.double().numpy()), made.timesteps.tolist()


@pytest.mark.parametrize("schedule", ["scaled_linear", "linear"])
@pytest.mark.parametrize("prediction", ORIGINAL)
def test_lcm_is_lcm_scheduler(prediction, schedule, monkeypatch):
    made = diffusers.LCMScheduler(
        beta_schedule=schedule, prediction_type=prediction, clip_sample=False
    )
    path, levels = steps_of(made, num_inference_steps=7)
    want, noise = theirs(made, path, levels, prediction, start(), monkeypatch)
    table = ardiff.solver("lcm", path=path, prediction=prediction, steps=7, grid=levels)
    assert equal(ours(table, path, start(), noise), want)
    ddpm = ardiff.solver("ddpm", path=path, prediction=prediction, steps=7, grid=levels)
    assert not equal(ours(ddpm, path, start(), noise), want)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_lcm_is_flow_match_lcm_scheduler(shift, monkeypatch):
    made, path = diffusers.FlowMatchLCMScheduler(shift=shift), get_path("flow")
    made.set_timesteps(7)
    levels = made.sigmas[:7].double().tolist()
    want, noise = theirs(made, path, levels, "flow", start(), monkeypatch)
    table = ardiff.solver("lcm", path=path, prediction="flow", steps=7, grid=levels)
    assert equal(ours(table, path, start(), noise), want)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("prediction", ORIGINAL)
def test_tcd_is_tcd_scheduler(prediction, gamma, monkeypatch):
    """It ends with a jump to timestep 0, the last level here."""
    made = diffusers.TCDScheduler(
        beta_schedule="scaled_linear", prediction_type=prediction, clip_sample=False
    )
    path, levels = steps_of(made, num_inference_steps=7)
    step = made.step
    made.step = lambda *args, **kwargs: step(*args, eta=gamma, **kwargs)
    want, noise = theirs(made, path, levels, prediction, start(), monkeypatch)
    grid = [*levels, 0]

    def table(gamma):
        return ardiff.solver(
            "tcd", path=path, prediction=prediction, steps=7, grid=grid, denoise_last=False,
            gamma=gamma,
        )  # fmt: skip

    assert equal(ours(table(gamma), path, start(), noise), want)
    assert not equal(ours(table(0.6), path, start(), noise), want)


@pytest.mark.parametrize("path", ["ou", "edm", "flow"])
def test_the_ends_of_gamma_are_ddim_and_lcm(path):
    """Jumps of no length, and to level 0, which is the data on these paths."""
    options = {"path": path, "prediction": "sample", "steps": 8}
    ddim = ardiff.solver("ddim", **options).coefficients
    lcm = ardiff.solver("lcm", **options).coefficients
    tcd = [ardiff.solver("tcd", **options, gamma=gamma).coefficients for gamma in (0.0, 1.0)]
    np.testing.assert_allclose(tcd[0], ddim, rtol=1e-9, atol=1e-7)
    np.testing.assert_allclose(tcd[1], lcm, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "sigmas", [[1.0, 0.9, 0.75, 0.5, 0.3, 0.1], [0.98, 0.9, 0.7, 0.4, 0.2, 0.02]]
)
def test_euler_ancestral_on_a_flow_is_ltx_euler_ancestral_rf(sigmas, eta, monkeypatch):
    made, path = diffusers.LTXEulerAncestralRFScheduler(eta=eta), get_path("flow")
    made.set_timesteps(sigmas=[*sigmas, 0.0])
    want, noise = theirs(made, path, sigmas, "flow", start(), monkeypatch)
    options = {"path": path, "prediction": "flow", "steps": 6, "grid": sigmas, "eta": eta}
    table = ardiff.solver("euler-ancestral", **options)
    assert equal(ours(table, path, start(), noise), want)
    if eta:
        other = ardiff.solver("ddim", **options)
        assert not equal(ours(other, path, start(), noise), want)
