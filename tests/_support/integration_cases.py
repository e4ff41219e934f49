"""Samples whose bits are recorded: the samplers of k-diffusion and the schedulers of diffusers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ardiff.integrations.kdiffusion import SAMPLERS
from tests._support.exact import denoiser, numbers
from tests._support.sample_cases import Case

IMAGES = (3, 2, 3, 5)
SIGMAS = {
    "edm": [14.5, 9.25, 5.5, 3.0, 1.625, 0.8125, 0.375, 0.125, 0.0],
    "edm-ends": [14.5, 6.25, 2.5, 1.0, 0.3125],
    "flow": [1.0, 0.9375, 0.8125, 0.625, 0.4375, 0.25, 0.125, 0.03125, 0.0],
    "flow-ends": [0.96875, 0.75, 0.5, 0.21875],
}


class Draws:
    """A noise sampler: the numbers of its first draw, its second and so on."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        self.count += 1
        return numbers(*IMAGES, seed=self.count)


def k_diffusion(name: str, sigmas: str, drawn: bool, **options: Any) -> tuple[Tensor, ...]:
    """The last x, and what the callback sees at each interval."""
    at, seen = torch.tensor(SIGMAS[sigmas]), []

    def watch(info: dict) -> None:
        seen.extend((info["x"].clone(), info["denoised"].clone()))

    source = {
        "seed": 2**64 - 7,
        "sample_ids": [4, 0, 9],
        "noise_sampler": Draws() if drawn else None,
    }
    x = SAMPLERS[name](
        denoiser, numbers(*IMAGES) * at[0], at, None, watch, True, path=sigmas.partition("-")[0],
        **source, **options,
    )  # fmt: skip
    return x, *seen


K_OPTIONS = {
    "ddpm_fused": [{"eta": 0.0}, {"eta": 0.5, "s_noise": 0.75}],
    "dpmpp_2m_sde_fused": [{"eta": 0.5, "s_noise": 0.75}, {"solver_type": "heun"}],
    "rtk_uld": [{"stages": 4}, {"inner": 3, "gamma": 1.5, "tau": 0.3, "s_noise": 0.75}],
    "rtk_mala": [{"stages": 4}, {"accept": "simpson"}, {"inner": 3, "tau": 0.6, "s_noise": 0.75}],
}


def of_k_diffusion() -> Iterator[tuple[str, Case]]:
    """Every sampler over sigmas of both paths, its noise addressed or drawn by a noise sampler."""
    for name in SAMPLERS:
        for sigmas in SIGMAS:
            for options in ({}, *K_OPTIONS[name]):
                given = ",".join(f"{key}={value}" for key, value in options.items()) or "plain"
                for drawn in (False, True):
                    how = "drawn" if drawn else "seed"
                    draw = partial(k_diffusion, name, sigmas, drawn, **options)
                    yield f"kdiffusion/{name}/{sigmas}/{given}/{how}", Case(draw)


# a linear schedule in steps of 2^-20, so that float32 holds it
BETAS = [(104 + 21 * i) / 2**20 for i in range(1000)]


def diffusers_loop(
    name: str, steps: int, wide: bool, first: int = 0, noises: bool = False, **config: Any
) -> tuple[Tensor, ...]:
    """A pipeline's loop: all states."""
    from ardiff.integrations import diffusers as schedulers

    scheduler = getattr(schedulers, name)(trained_betas=BETAS, **config)
    scheduler.seed, scheduler.sample_ids = -12, [7, 0, 2**43 - 1]
    scheduler.set_timesteps(steps)
    if first:
        scheduler.set_begin_index(first)
    x, states = numbers(*IMAGES), []
    for i, t in enumerate(scheduler.timesteps[first:]):
        out = x * (0.9 - float(t) / 4096) + x / (x * x + 1) * 0.25
        if wide:
            out = torch.cat([out, x * x / (x * x + 1)], 1)
        given = {"variance_noise": numbers(*IMAGES, seed=i + 1)} if noises else {}
        x = scheduler.step(out, t, x, **given).prev_sample
        states.append(x)
    return tuple(states)


PREDICTIONS = ("epsilon", "sample", "v_prediction")
SPACINGS = ("leading", "trailing", "linspace")
DDPM = [
    *({"variance_type": v} for v in ("fixed_large", "fixed_small_log", "fixed_large_log")),
    {"clip_sample": False}, {"clip_sample_range": 2.0, "steps_offset": 1},
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    {"variance_type": "learned_range", "wide": True}, {"variance_type": "learned", "wide": True},
    {"thresholding": True, "sample_max_value": 1.5}, {"first": 4}, {"noises": True},
]  # fmt: skip
DPM = [
    *({"solver_order": n, "lower_order_final": f} for n in (1, 3) for f in (True, False)),
    *({"algorithm_type": "sde-dpmsolver++", "solver_order": n} for n in (1, 2)),
    {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}, {"solver_type": "heun"},
    {"algorithm_type": "sde-dpmsolver++", "noises": True}, {"first": 4},
    {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}, {"euler_at_final": True},
    {"final_sigmas_type": "sigma_min"}, {"thresholding": True, "sample_max_value": 1.5},
    {"variance_type": "learned_range", "wide": True},
]  # fmt: skip
RTK = [
    {"timestep_spacing": "log_snr"}, {"prediction_type": "flow_prediction", "flow_shift": 2.0},
    {"inner": 3, "tau": 0.3}, {"clip_sample": True}, {"first": 5}, {"wide": True},
]  # fmt: skip
SCHEDULERS = {
    "FusedDDPMScheduler": DDPM, "FusedDPMSolverMultistepScheduler": DPM, "RTKULDScheduler": RTK,
    "RTKMALAScheduler": RTK,
}  # fmt: skip


def of_diffusers() -> Iterator[tuple[str, Case]]:
    """Every scheduler with every prediction and spacing, then one option after another."""
    for name, more in SCHEDULERS.items():
        usual = [
            {"prediction_type": p, "timestep_spacing": s} for p in PREDICTIONS for s in SPACINGS
        ]
        for config in (*usual, *more):
            given = ",".join(f"{key}={value}" for key, value in config.items())
            options = {"steps": 11, "wide": False, **config}
            draw = partial(diffusers_loop, name, **options)
            depends = "torch" if _takes_roots(name, config) else ""
            yield f"diffusers/{name}/{given}", Case(draw, depends=depends, needs="diffusers")


def _takes_roots(name: str, config: dict[str, Any]) -> bool:
    """Whether diffusers takes square roots by torch, which rounds them by the machine."""
    if name == "FusedDPMSolverMultistepScheduler":
        return not config.get("use_flow_sigmas")
    return bool(config.get("rescale_betas_zero_snr")) or config.get("variance_type") == "learned"


def integration_cases() -> dict[str, Case]:
    """All of the above by name."""
    return {name: case for maker in (of_k_diffusion, of_diffusers) for name, case in maker()}
