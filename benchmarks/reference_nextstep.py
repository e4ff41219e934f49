"""The flow head of NextStep-1 (2025) in plain PyTorch: rival and oracle of the integration.

Its net has the state-dict names of MAR's. Time runs from noise at 0 to data at 1, the head predicts
the velocity, and the loop is Euler-Maruyama. Nothing in it is slow on purpose.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .reference_mar import HeadNet


class FlowHead(nn.Module):
    """A velocity head and its loop over tokens of `dim` numbers, on contexts of `context`."""

    def __init__(self, dim: int, context: int, width: int, depth: int, out: int = 0) -> None:
        super().__init__()
        self.dim = dim
        self.net = HeadNet(dim, context, width, depth, out or dim)

    def velocity(self, x: Tensor, t: Tensor, c: Tensor, cfg: float, cfg2: float) -> Tensor:
        """`x [B, d]`, its time and contexts `[ways B, D]` -> the guided velocity, float32."""
        ways = len(c) // len(x)
        parts = self.net(x.repeat(ways, 1).to(c.dtype), t.to(c.dtype).expand(len(c)), c).float()
        if ways == 1:
            return parts
        v, u, *second = parts.chunk(ways)
        if not second:
            return u + cfg * (v - u)
        return second[0] + cfg2 * (u - second[0]) + cfg * (v - u)

    @torch.no_grad()
    def sample(
        self, c, cfg=1.0, cfg2=1.0, timesteps_shift=1.0, num_sampling_steps=20, last_step_size=0.04,
        noise_repeat=1, noise=None,
    ):  # fmt: skip
        """Tokens `[B, d]` in the dtype of c `[ways B, D]`: the conditions, then those without text,
        then those without both; one way more for each of cfg and cfg2 above 1. `noise`
        `[num_sampling_steps, B, d]` is used in place of drawn normals."""
        ways = 1 + (cfg > 1) + (cfg2 > 1)
        if noise is None:
            noise = torch.randn(num_sampling_steps, noise_repeat, self.dim)
            noise = noise.repeat(1, len(c) // ways // noise_repeat, 1)
        x = noise[0]
        times = torch.linspace(0, 1 - last_step_size, num_sampling_steps)
        times = times / (timesteps_shift - (timesteps_shift - 1) * times)
        for k in range(num_sampling_steps - 1):
            t, dt = times[k], times[k + 1] - times[k]
            v = self.velocity(x, t, c, cfg, cfg2)
            score = (t * v - x) / ((1 - t) ** 2 + t * (1 - t))
            x = x + dt * (v + (1 - t) * score) + torch.sqrt(2 * (1 - t) * dt) * noise[k + 1]
        return (x + last_step_size * self.velocity(x, times[-1], c, cfg, cfg2)).to(c.dtype)
