"""Diffusion heads: what any of them is, and the adaLN-MLP of MAR (Li et al. 2024).

A head maps a noised patch x, a level and a context c to the model output. Everything that depends
on level and context only can be hoisted out of the sampling loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPS = 1e-6
_HOIST_BYTES = 128 << 20
_NORMS = {"layer": F.layer_norm, "rms": F.rms_norm}


class Layer(NamedTuple):
    """A linear layer: weight `[rows, columns]`, bias `[rows]` or None."""

    weight: Tensor
    bias: Tensor | None


class Head(nn.Module):
    """The description of a head, on which hoisting and the fused loop rest.

    Modulations (shift, scale, gate) are a linear map of SiLU(time + context); between an input and
    an output projection stand blocks h + gate MLP(norm(h) (1 + scale) + shift).

    Attributes:
        norm, mlp: the form of the blocks, as `ardiff_kernels.ops.head_step` takes them: `layer` or
            `rms`, and `plain` or `gated`.
        width, depth, eps: of the blocks and their norms.
        hoists_ragged: samples may have levels of their own.
    """

    norm: str
    mlp: str
    width: int
    depth: int
    eps: float
    hoists_ragged = True

    def time_arguments(self, levels: Tensor) -> Tensor:
        """What the time embedding is a function of: levels `[T]` or `[T, B]` -> `[.., k]`."""
        return levels[..., None]

    def embed_time(self, arguments: Tensor) -> Tensor:
        """`[n, k]` -> `[n, width]`."""
        raise NotImplementedError

    def embed_context(self, c: Tensor) -> Tensor:
        """`[B, context]` -> `[B, width]`."""
        raise NotImplementedError

    def modulation_layer(self) -> Layer:
        """SiLU(y) -> (shift, 1 + scale, gate) of each block, then (shift, 1 + scale).

        The affine part of each norm is folded in: (n g + b) m + shift = n (g m) + (b m + shift),
        m = 1 + scale. The bias is never None.
        """
        raise NotImplementedError

    def loop_layers(self) -> list[Layer]:
        """Input, then two a block (gated: gate above up, then down), then final."""
        raise NotImplementedError

    def loop_calls(self) -> Sequence[Callable[[Tensor], Tensor]]:
        """`loop_layers` as functions."""
        return [partial(F.linear, weight=w, bias=b) for w, b in self.loop_layers()]

    def hoist(self, levels: Tensor, c: Tensor) -> Callable[[int, Tensor], Tensor]:
        """Computes once what depends on level and context; the function returned does the rest.

        Args:
            levels: `[T]`, the level of each row of the loop, or `[T, B]`, one for each sample.
            c: `[B, context]`.

        Returns:
            `f(row, x)`: equal to `head(x, levels[row], c)` to rounding. Past 128 MiB the
            modulations are computed in runs of rows, each when the loop first enters it.
        """
        arguments = self.time_arguments(levels)
        time = self.embed_time(arguments.flatten(0, -2)).view(*arguments.shape[:-1], self.width)
        time = time.view(len(levels), -1 if levels.numel() else 1, self.width)
        context, layers = self.embed_context(c), self.loop_calls()
        weight, bias = self.modulation_layer()
        row_bytes = len(c) * len(bias) * bias.element_size()
        run = max(1, min(len(levels), _HOIST_BYTES // max(1, row_bytes)))
        held: dict[int, list[list[Tensor]]] = {}

        def modulations(row: int) -> list[Tensor]:
            first = row - row % run
            if first not in held:
                held.clear()
                y = F.silu(time[first : first + run] + context)
                chunks = F.linear(y, weight, bias).split(self.width, -1)
                held[first] = [
                    list(parts) for parts in zip(*map(torch.unbind, chunks), strict=True)
                ]
            return held[first][row - first]

        def step(row: int, x: Tensor) -> Tensor:
            return evaluate(self, x, modulations(row), layers)

        if len(levels):
            modulations(0)
        return step


def evaluate(
    head: Head,
    x: Tensor,
    modulation: Sequence[Tensor],
    layers: Sequence[Callable[[Tensor], Tensor]],
) -> Tensor:
    """The part of a head in the loop, x `[.., d]` -> `[.., out]`, by operators of PyTorch.
    `modulation`: (shift, 1 + scale, gate) of each block and (shift, 1 + scale), `[.., width]`."""
    norm = partial(_NORMS[head.norm], normalized_shape=(head.width,), eps=head.eps)
    h = layers[0](x)
    for i in range(head.depth):
        shift, scale, gate = modulation[3 * i : 3 * i + 3]
        inner = layers[2 * i + 1](torch.addcmul(shift, norm(h), scale))
        if head.mlp == "gated":
            inner, up = inner.chunk(2, -1)
            inner = F.silu(inner) * up
        else:
            inner = F.silu(inner)
        h = torch.addcmul(h, layers[2 * i + 2](inner), gate)
    return layers[-1](torch.addcmul(modulation[-2], norm(h), modulation[-1]))


def fold_modulations(
    blocks: Sequence[tuple[nn.Linear, Tensor, Tensor | None]], last: nn.Linear
) -> Layer:
    """`Head.modulation_layer` of blocks (map to shift, scale, gate; the norm's gain and offset)."""
    weights, biases = [], []
    for layer, gain, offset in blocks:
        w_shift, w_scale, w_gate = layer.weight.chunk(3)
        bias = gain.new_zeros(3 * len(gain)) if layer.bias is None else layer.bias
        b_shift, b_scale, b_gate = bias.chunk(3)
        if offset is not None:
            w_shift = w_shift + offset[:, None] * w_scale
            b_shift = b_shift + offset * (1 + b_scale)
        weights += [w_shift, gain[:, None] * w_scale, w_gate]
        biases += [b_shift, gain * (1 + b_scale), b_gate]
    bias = last.weight.new_zeros(len(last.weight)) if last.bias is None else last.bias
    shift, scale = bias.chunk(2)
    return Layer(torch.cat([*weights, last.weight]), torch.cat([*biases, shift, 1 + scale]))


def sinusoidal_embedding(level: Tensor, size: int = 256, max_period: float = 10000.0) -> Tensor:
    """`[B]` -> `[B, size]`: cosines, then sines, at size/2 frequencies from 1 to 1/max_period."""
    half = size // 2
    index = torch.arange(half, dtype=torch.float32, device=level.device)
    angles = level.float()[:, None] * torch.exp(-math.log(max_period) / half * index)
    return torch.cat([angles.cos(), angles.sin()], 1)


class TimestepEmbedder(nn.Module):
    def __init__(self, width: int, features: int = 256) -> None:
        super().__init__()
        self.features = features
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, level: Tensor) -> Tensor:
        return self.mlp(sinusoidal_embedding(level, self.features).to(self.mlp[0].weight.dtype))


class ResBlock(nn.Module):
    """x + gate * MLP(LN(x) (1 + scale) + shift), the three modulations a linear map of SiLU(y)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=_EPS)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(y).chunk(3, -1)
        return x + gate * self.mlp(self.in_ln(x) * (1 + scale) + shift)


class FinalLayer(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=_EPS, elementwise_affine=False)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(y).chunk(2, -1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


class DiffusionHead(Head):
    """MAR's SimpleMLPAdaLN: `head(x, level, c)` or, in a loop, `f = head.hoist(levels, c)` and
    `f(row, x)`.

    NextStep-1 and NOVA have heads of the same form and names.

    Args:
        dim: elements of a patch, d.
        context: channels of the context.
        width, depth: of the MLP.
        out: output channels, d or 2 d (learned-range variance).
    """

    norm, mlp = "layer", "plain"

    def __init__(
        self, dim: int, context: int, width: int, depth: int, out: int | None = None
    ) -> None:
        super().__init__()
        self.width, self.depth, self.eps = width, depth, _EPS
        self.time_embed = TimestepEmbedder(width)
        self.cond_embed = nn.Linear(context, width)
        self.input_proj = nn.Linear(dim, width)
        self.res_blocks = nn.ModuleList([ResBlock(width) for _ in range(depth)])
        self.final_layer = FinalLayer(width, dim if out is None else out)
        for layer in [*self.res_blocks, self.final_layer]:
            nn.init.zeros_(layer.adaLN_modulation[1].weight)
            nn.init.zeros_(layer.adaLN_modulation[1].bias)
        nn.init.zeros_(self.final_layer.linear.weight)
        nn.init.zeros_(self.final_layer.linear.bias)

    def forward(self, x: Tensor, level: Tensor, c: Tensor) -> Tensor:
        """x `[B, d]`, level `[B]` or `[1]`, c `[B, context]` -> `[B, out]`."""
        y = self.time_embed(level) + self.cond_embed(c)
        h = self.input_proj(x)
        for block in self.res_blocks:
            h = block(h, y)
        return self.final_layer(h, y)

    def embed_time(self, arguments: Tensor) -> Tensor:
        return self.time_embed(arguments[:, 0])

    def embed_context(self, c: Tensor) -> Tensor:
        return self.cond_embed(c)

    def modulation_layer(self) -> Layer:
        blocks = [
            (block.adaLN_modulation[1], block.in_ln.weight, block.in_ln.bias)
            for block in self.res_blocks
        ]
        return fold_modulations(blocks, self.final_layer.adaLN_modulation[1])

    def loop_layers(self) -> list[Layer]:
        return [Layer(layer.weight, layer.bias) for layer in self.loop_calls()]

    def loop_calls(self) -> list[nn.Linear]:
        inner = [layer for block in self.res_blocks for layer in (block.mlp[0], block.mlp[2])]
        return [self.input_proj, *inner, self.final_layer.linear]


class EDMHead:
    """A head in the preconditioning of Karras et al. 2022, unit variance: predicts the data.

    D(x, sigma) = c_skip x + c_out F(c_in x, c_noise), on the path `edm`, where level is sigma.
    c_noise is log(sigma)/4 times 1000, as the sinusoidal embedding is made for training timesteps.
    """

    def __init__(self, head: DiffusionHead) -> None:
        self.head = head

    @staticmethod
    def _noise_level(sigma: Tensor) -> Tensor:
        return 250 * sigma.log()

    def __call__(self, x: Tensor, level: Tensor, c: Tensor) -> Tensor:
        """x `[B, d]`, level (sigma) `[B]` or `[1]`, c `[B, context]` -> prediction `[B, d]`."""
        sigma = level.to(x.dtype)[:, None]
        norm = 1 + sigma**2
        inner = self.head(x * norm.rsqrt(), self._noise_level(level), c)
        return x / norm + inner * sigma * norm.rsqrt()

    hoists_ragged = True

    def hoist(self, levels: Tensor, c: Tensor) -> Callable[[int, Tensor], Tensor]:
        """As `DiffusionHead.hoist`, with the preconditioning around it."""
        inner = self.head.hoist(self._noise_level(levels), c)
        sigma = levels.double().reshape(len(levels), -1, 1)
        norm = 1 + sigma**2
        skip, scale_in, scale_out = (
            f.to(c.dtype) for f in (1 / norm, norm**-0.5, sigma * norm**-0.5)
        )

        def step(row: int, x: Tensor) -> Tensor:
            return x * skip[row] + inner(row, x * scale_in[row]) * scale_out[row]

        return step
