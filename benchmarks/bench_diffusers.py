"""`step` of the fused diffusers schedulers against diffusers' own, at Stable Diffusion's size.

A call is one step of a 50-step schedule on `[1, 4, 64, 64]`, noise and output object included; the
model is left out. The loop is checked first, on the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import torch
from torch import Tensor

from ardiff.integrations import diffusers as fused

from . import _harness
from ._harness import Row, Settings

SUITE = "integrations"
STEPS, SHAPE = 50, (1, 4, 64, 64)
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm_step": ("DDPMScheduler", {}),
    "dpmpp_step": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_sde_step": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
}
CASES = tuple(f"{name}/16384/float32" for name in CONFIGS)
TOLERANCE = 1e-5


def model(x: Tensor, t: Tensor) -> Tensor:
    """A smooth stand-in for a denoiser."""
    return torch.tanh(0.8 * x + 0.001 * float(t)) - 0.2 * x


def stepper(scheduler, x: Tensor, generator: torch.Generator) -> Callable[[], Tensor]:
    """One step per call, the schedule set again at its end."""
    place = STEPS

    def step() -> Tensor:
        nonlocal place
        if place == STEPS:
            scheduler.set_timesteps(STEPS, device=x.device)
            place = 0
        t = scheduler.timesteps[place]
        place += 1
        return scheduler.step(x, t, x, generator=generator).prev_sample

    return step


def loop(scheduler, x: Tensor, noises: Tensor | None) -> Tensor:
    """Samples of a whole loop; with `noises` those of each step."""
    scheduler.set_timesteps(STEPS, device=x.device)
    for i, t in enumerate(scheduler.timesteps):
        given = {} if noises is None else {"variance_noise": noises[i]}
        x = scheduler.step(model(x, t), t, x, **given).prev_sample
    return x


def expected_loop(scheduler, x: Tensor, noises: Tensor) -> Tensor:
    """diffusers' loop on the same noise, which its DDPM scheduler draws for itself."""
    if hasattr(scheduler, "sigmas"):
        return loop(scheduler, x, noises)
    from diffusers.schedulers import scheduling_ddpm

    drawn, own = iter(noises), scheduling_ddpm.randn_tensor
    scheduling_ddpm.randn_tensor = lambda *args, **options: next(drawn)
    try:
        return loop(scheduler, x, None)
    finally:
        scheduling_ddpm.randn_tensor = own


def run(case: str, settings: Settings) -> Iterator[Row]:
    """Correctness of the loop, then times per step and the speedup against diffusers."""
    name = case.split("/", 1)[0]
    if case not in CASES:
        raise ValueError(f"unknown case {case!r}: expected one of {', '.join(CASES)}")
    kind, config = CONFIGS[name]
    theirs, ours = getattr(diffusers, kind)(**config), getattr(fused, f"Fused{kind}")(**config)
    generator = torch.Generator(settings.device).manual_seed(settings.seed)
    draw = lambda *shape: torch.randn(  # noqa: E731
        shape, generator=generator, device=settings.device
    )
    x, noises = draw(*SHAPE), draw(STEPS, *SHAPE)
    with torch.no_grad():
        expected = expected_loop(theirs, x, noises)
        scale = max(1.0, float(expected.abs().max()))
        found = loop(ours, x, noises)
        yield _harness.error_row(SUITE, case, "diffusers", found, expected, TOLERANCE * scale)
        rivals = settings.pick({"diffusers": stepper(theirs, x, generator)})
        competitors = {_harness.OURS: stepper(ours, x, generator), **rivals}
        seconds = _harness.interleave(competitors, settings)
    yield from _harness.comparison(SUITE, case, seconds, x.numel(), list(rivals))
