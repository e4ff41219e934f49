"""The diffusion loss of MAR (Li et al. 2024) in plain PyTorch: rival and oracle of the integration.

It has the state-dict names of the published weights. The loop is DDPM with learned-range variance
(Nichol & Dhariwal 2021) on a subsequence of 1000 cosine steps. Nothing in it is slow on purpose:
coefficients are numbers made before the loop, and guidance evaluates both conditions in one call.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.register_buffer("index", torch.arange(128), persistent=False)

    def frequencies(self) -> Tensor:
        return torch.exp(-math.log(1e4) / 128 * self.index)

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None].float() * self.frequencies()
        features = torch.cat([angles.cos(), angles.sin()], 1)
        return self.mlp(features.to(self.mlp[0].weight.dtype))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(y).chunk(3, 1)
        return h + gate * self.mlp(self.in_ln(h) * (1 + scale) + shift)


class Last(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(y).chunk(2, 1)
        h = F.layer_norm(h, h.shape[1:], eps=1e-6)
        return self.linear(h * (1 + scale) + shift)


class HeadNet(nn.Module):
    """(x `[B, d]`, t `[B]`, c `[B, D]`) -> `[B, out]`."""

    def __init__(self, dim: int, context: int, width: int, depth: int, out: int) -> None:
        super().__init__()
        self.time_embed, self.cond_embed = TimeEmbedding(width), nn.Linear(context, width)
        self.input_proj = nn.Linear(dim, width)
        self.res_blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.final_layer = Last(width, out)

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        y, h = self.time_embed(t) + self.cond_embed(c), self.input_proj(x)
        for block in self.res_blocks:
            h = block(h, y)
        return self.final_layer(h, y)


class RespacedDDPM:
    """The coefficients of each kept timestep, from float64, and the loop over them.

    `kept` is how many, spread evenly from the first to the last, or the timesteps themselves.
    """

    def __init__(self, kept: int | list[int], total: int = 1000) -> None:
        if isinstance(kept, int):
            kept = [round((total - 1) / max(1, kept - 1) * i) for i in range(kept)]
        self.timestep_map, steps = kept, len(kept)
        t = torch.arange(total + 1, dtype=torch.float64) / total
        curve = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - curve[1:] / curve[:-1]).clamp(max=0.999)
        bar = (1 - betas).cumprod(0)[self.timestep_map]
        before = torch.cat([bar.new_ones(1), bar[:-1]])
        beta = 1 - bar / before
        posterior = beta * (1 - before) / (1 - bar)
        posterior[0] = posterior[1] if steps > 1 else beta[0]  # 0, and not used: no noise at t = 0
        columns = {
            "x0_x": bar.rsqrt(), "x0_eps": (1 / bar - 1).sqrt(),
            "mean_x0": before.sqrt() * beta / (1 - bar),
            "mean_x": (1 - beta).sqrt() * (1 - before) / (1 - bar),
            "log_low": posterior.log(), "log_high": beta.log(),
        }  # fmt: skip
        self.alphas_cumprod = bar.numpy()
        self.columns = {name: column.tolist() for name, column in columns.items()}

    @torch.no_grad()
    def p_sample_loop(
        self, model, x: Tensor, temperature: float = 1.0, noise: Tensor | None = None
    ) -> Tensor:
        """`model(x, t)` gives epsilon and the share of the log variance, `[B, 2d]`. `noise`
        `[steps, B, d]` is used in place of drawn normals."""
        steps = len(self.timestep_map)
        for row, i in enumerate(reversed(range(steps))):
            at = {name: column[i] for name, column in self.columns.items()}
            t = torch.full((len(x),), self.timestep_map[i], device=x.device)
            epsilon, share = model(x, t).chunk(2, 1)
            x0 = at["x0_x"] * x - at["x0_eps"] * epsilon
            mean = at["mean_x0"] * x0 + at["mean_x"] * x
            if i == 0:
                return mean
            share = (share + 1) / 2
            log_variance = share * at["log_high"] + (1 - share) * at["log_low"]
            normal = torch.randn_like(x) if noise is None else noise[row]
            x = mean + torch.exp(0.5 * log_variance) * normal * temperature
        return x


class DiffLoss(nn.Module):
    def __init__(
        self, dim: int, context: int, depth: int, width: int, kept: int | list[int]
    ) -> None:
        super().__init__()
        self.dim = dim
        self.net = HeadNet(dim, context, width, depth, 2 * dim)
        self.gen_diffusion = RespacedDDPM(kept)

    def sample(self, z, temperature=1.0, cfg=1.0, noise=None):
        """z `[N, D]` -> `[N, d]`; with guidance `[2N, D]`, the conditions first, -> `[2N, d]`, of
        which the first half are the tokens. `noise` is `[1 + steps, rows of z, d]`."""
        guided = not cfg == 1.0
        count = len(z) // 2 if guided else len(z)
        shape = (count, self.dim)
        x = torch.randn(shape, device=z.device) if noise is None else noise[0, :count]

        def plain(x, t):
            return self.net(x.to(z.dtype), t, z).to(x.dtype)

        def with_guidance(x, t):
            half = x[:count]
            out = self.net(torch.cat([half, half]).to(z.dtype), t, z).to(x.dtype)
            epsilon, share = out.chunk(2, 1)
            c, u = epsilon.chunk(2)
            epsilon = u + cfg * (c - u)
            return torch.cat([torch.cat([epsilon, epsilon]), share], 1)

        loop = self.gen_diffusion.p_sample_loop
        given = None if noise is None else noise[1:]
        if guided:
            return loop(with_guidance, torch.cat([x, x]), temperature, given)
        return loop(plain, x, temperature, given)


@torch.no_grad()
def randomise(loss: DiffLoss, seed: int = 0) -> DiffLoss:
    """Random weights whose samples are of order 1: those of normal data, disturbed at low noise.

    At high noise epsilon must be x to three digits, since alpha is 5e-5 at the last timestep. So a
    large constant makes the norms nearly linear, the outputs invert the input projection and are
    scaled by sin(pi t / 2000), sigma on the cosine schedule, and time drives all other modulations
    to 0.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in loss.parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.3
        parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    net, dim, constant = loss.net, loss.dim, 30.0
    enter, last, time = net.input_proj, net.final_layer, net.time_embed
    enter.weight -= enter.weight.mean(0)
    sign = 1 - 2 * (torch.arange(enter.out_features) % 2.0)
    inverse = torch.linalg.pinv(torch.cat([enter.weight, sign[:, None]], 1))[:dim]
    enter.bias.copy_(constant * sign)
    last.linear.weight[:dim] = inverse * (constant**2 + 1) ** 0.5
    last.linear.weight[dim:] *= 0.4
    last.linear.bias[:dim] = 0
    # SiLU is the identity to 4e-8 from 20 on: channel 0 of time and context is 20 + sigma.
    nearest = int((time.frequencies() - math.pi / 2000).abs().argmin())
    first, second = time.mlp[0], time.mlp[2]
    first.weight[:2], first.bias[:2] = 0, torch.tensor([20.0, 0.0])
    first.weight[0, 128 + nearest] = 1
    first.weight[1, -1] = 150.0  # sin(t / 9306): 0 to 16
    second.weight[0], second.bias[0] = 0, 0
    second.weight[:, 0], second.weight[:, 1] = 0, -1.5
    second.weight[0, :2] = torch.tensor([1.0, 0.0])
    net.cond_embed.weight[0], net.cond_embed.bias[0] = 0, 0
    for block in (*net.res_blocks, last):
        block.adaLN_modulation[1].weight[:, 0] = 0
        block.adaLN_modulation[1].bias.zero_()
    for block in net.res_blocks:
        block.mlp[2].weight *= 10
    final = last.adaLN_modulation[1]
    final.weight *= 0.02
    final.weight[enter.out_features :, 0] = 1
    final.bias[enter.out_features :] = -21.0
    return loss.eval().requires_grad_(False)
