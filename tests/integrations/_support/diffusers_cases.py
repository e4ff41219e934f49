"""What the tests of the diffusers schedulers share."""

from __future__ import annotations

import torch
from diffusers.schedulers import scheduling_ddpm
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ardiff.integrations import diffusers as ours

SHAPE = (3, 2, 2, 3)
STEPPED = (
    ours.FusedDDPMScheduler,
    ours.FusedDPMSolverMultistepScheduler,
    ours.RTKULDScheduler,
    ours.RTKMALAScheduler,
)
KARRAS = (
    ours.FusedDDIMScheduler,
    ours.FusedEulerAncestralDiscreteScheduler,
    ours.FusedEulerDiscreteScheduler,
    ours.FusedLCMScheduler,
    ours.FusedUniPCMultistepScheduler,
)
IN_ROWS = (*KARRAS, ours.FusedFlowMatchEulerDiscreteScheduler)


def model(x: Tensor, t: float | Tensor, width: int = 1) -> Tensor:
    """A smooth stand-in for a denoiser, with `width - 1` further outputs in [-1, 1]."""
    out = torch.tanh(0.8 * x + 0.001 * float(t)) - 0.2 * x
    return torch.cat([out] + [torch.cos(3 * x)] * (width - 1), 1)


def start(steps: int, seed: int = 0, shape: tuple = SHAPE) -> tuple[Tensor, Tensor]:
    """An initial state and the noise of each step."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    return x, torch.randn((steps, *shape), generator=generator)


def loop(scheduler, x: Tensor, noises=None, width: int = 1, **options) -> Tensor:
    """A pipeline's loop."""
    for i, t in enumerate(scheduler.timesteps):
        if noises is not None:
            options["variance_noise"] = noises[i]
        scaled = scheduler.scale_model_input(x, t)
        x = scheduler.step(model(scaled, t, width), t, x, **options).prev_sample
    return x


def ddpm_loop(scheduler, x: Tensor, noises: Tensor, width: int, monkeypatch) -> Tensor:
    """The loop of diffusers' DDPM scheduler, which draws its noise itself, on given noise."""
    for t, noise in zip(scheduler.timesteps, noises, strict=True):
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *a, n=noise, **k: n)
        x = scheduler.step(model(x, t, width), t, x).prev_sample
    return x


class Ops(TorchDispatchMode):
    """Names of the ops that are dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.names.append(str(op))
        return op(*args, **(kwargs or {}))
