"""A model of MAR's form (Li et al. 2024) in plain PyTorch: the oracle and rival of the integration.

Its diffusion loss has the state-dict names of the published weights. The loop is DDPM with
learned-range variance (Nichol & Dhariwal 2021) on a subsequence of 1000 cosine steps. Transformer
blocks, which the integration does not touch, stand for MAR's encoder and decoder.
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
        self.register_buffer("frequencies", 1e4 ** (-torch.arange(128) / 128), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None].float() * self.frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], 1))


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
    """The coefficients of each kept timestep, from float64, and the loop over them."""

    def __init__(self, steps: int, total: int = 1000) -> None:
        stride = (total - 1) / (steps - 1) if steps > 1 else 1
        self.timestep_map = [round(stride * i) for i in range(steps)]
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
    def __init__(self, dim: int, context: int, depth: int, width: int, steps: int) -> None:
        super().__init__()
        self.dim = dim
        self.net = HeadNet(dim, context, width, depth, 2 * dim)
        self.gen_diffusion = RespacedDDPM(steps)

    def sample(self, z, temperature=1.0, cfg=1.0, noise=None):
        """z `[N, D]` -> `[N, d]`; with guidance `[2N, D]`, the conditions first, -> `[2N, d]`, of
        which the first half are the tokens. `noise` is `[1 + steps, rows of z, d]`."""
        guided = not cfg == 1.0
        count = len(z) // 2 if guided else len(z)
        shape = (count, self.dim)
        x = torch.randn(shape, device=z.device) if noise is None else noise[0, :count]

        def plain(x, t):
            return self.net(x, t, z)

        def with_guidance(x, t):
            half = x[:count]
            out = self.net(torch.cat([half, half]), t, z)
            epsilon, share = out.chunk(2, 1)
            c, u = epsilon.chunk(2)
            epsilon = u + cfg * (c - u)
            return torch.cat([torch.cat([epsilon, epsilon]), share], 1)

        loop = self.gen_diffusion.p_sample_loop
        given = None if noise is None else noise[1:]
        if guided:
            return loop(with_guidance, torch.cat([x, x]), temperature, given)
        return loop(plain, x, temperature, given)


class MARLike(nn.Module):
    """Class-conditional, token sets in random order, guidance that grows with the known tokens."""

    def __init__(
        self, tokens: int = 16, dim: int = 4, width: int = 48, classes: int = 10, steps: int = 20,
        head: tuple[int, int] = (2, 32),
    ) -> None:  # fmt: skip
        super().__init__()
        self.seq_len, self.dim, self.classes = tokens, dim, classes
        self.token_embed, self.class_embed = nn.Linear(dim, width), nn.Embedding(classes + 1, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.zeros(tokens, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True) for _ in range(2)
        )
        self.norm = nn.LayerNorm(width)
        depth, head_width = head
        self.diffloss = DiffLoss(dim, width, depth, head_width, steps)

    def contexts(self, tokens: Tensor, known: Tensor, labels: Tensor) -> Tensor:
        h = torch.where(known[..., None], self.token_embed(tokens), self.mask_token)
        h = h + self.positions + self.class_embed(labels)[:, None]
        for block in self.blocks:
            h = block(h)
        return self.norm(h)

    @torch.no_grad()
    def sample_tokens(
        self, count: int, num_iter: int = 4, cfg: float = 1.0, temperature: float = 1.0
    ) -> Tensor:
        """`[count, tokens, d]`, of classes 0, 1, ..."""
        length, labels = self.seq_len, torch.arange(count) % self.classes
        order = torch.stack([torch.randperm(length) for _ in range(count)])
        tokens, done = torch.zeros(count, length, self.dim), 0
        known = torch.zeros(count, length, dtype=torch.bool)
        for step in range(num_iter):
            left = math.floor(length * math.cos(math.pi / 2 * (step + 1) / num_iter))
            left = 0 if step == num_iter - 1 else max(1, min(left, length - done - 1))
            chosen = torch.zeros_like(known).scatter(1, order[:, done : length - left], True)
            weight = torch.tensor(1 + (cfg - 1) * (length - left) / length)
            z = self.contexts(tokens, known, labels)[chosen]
            if cfg != 1:
                null = torch.full_like(labels, self.classes)
                z = torch.cat([z, self.contexts(tokens, known, null)[chosen]])
            drawn = self.diffloss.sample(z, temperature, weight if cfg != 1 else 1.0)
            tokens[chosen] = drawn[: int(chosen.sum())]
            known, done = known | chosen, length - left
        return tokens
