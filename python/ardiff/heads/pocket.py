"""The flow head of Pocket-TTS (Kyutai 2025), with the state-dict names of transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import (
    Head,
    Layer,
    Marks,
    count_modules,
    fold_modulations,
    modulated_block,
    modulated_output,
)


class _TimeNorm(nn.Module):
    """x over its unbiased standard deviation, not centred, with a gain."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.weight * torch.rsqrt(x.var(-1, keepdim=True) + self.eps))


class _TimeEmbedding(nn.Module):
    def __init__(self, width: int, features: int, eps: float) -> None:
        super().__init__()
        half = features // 2
        index = torch.arange(half, dtype=torch.float32)
        self.register_buffer("freqs", torch.exp(-math.log(10000.0) * index / half))
        self.fc1, self.fc2 = nn.Linear(features, width), nn.Linear(width, width)
        self.norm = _TimeNorm(width, eps)

    def forward(self, time: Tensor) -> Tensor:
        """`[n, 1]` -> `[n, width]`."""
        angles = time.to(self.freqs.dtype) * self.freqs
        features = torch.cat([angles.cos(), angles.sin()], -1).to(self.fc1.weight.dtype)
        return self.norm(self.fc2(F.silu(self.fc1(features))))


class _Block(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps)
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, width)
        self.adaln_proj = nn.Linear(width, 3 * width)

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        def mlp(x: Tensor) -> Tensor:
            return self.fc2(F.silu(self.fc1(x)))

        return modulated_block(h, self.adaln_proj(F.silu(y)), self.norm, mlp)


class _FinalLayer(nn.Module):
    def __init__(self, width: int, out: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps, elementwise_affine=False)
        self.adaln_proj, self.proj = nn.Linear(width, 2 * width), nn.Linear(width, out)

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        return modulated_output(h, self.adaln_proj(F.silu(y)), self.norm, self.proj)


class PocketHead(Head):
    """`head(x, level, c, end)`: the mean velocity eps - x0 from `level` to the cleaner level `end`.

    On the path `flow`, prediction `flow`: transformers' times run the other way, t = 1 - level, and
    so does its velocity. Euler's method (`flow-euler`) on it is the sampler of Lagrangian
    self-distillation: one step ends where the next begins, the last at level 0.

    Args:
        dim: elements of a latent, d.
        context: channels of the context.
        width, depth: of the MLP.
        times: 2, start and end; 0 for a `drifting` head, which knows no time.
        eps, time_eps: of the norms of the blocks and of the time embeddings.
        features: of the sinusoidal embedding.
        flow_map: in a loop a row's end is the level of the next. False: its own level, where the
            mean is the velocity itself, as solvers that call several times at a level need it.
    """

    norm, mlp = "layer", "plain"
    marks = Marks(
        "final_layer.adaln_proj.weight",
        "input_proj.weight",
        "Pocket-TTS (input_proj, layers, final_layer)",
    )

    def __init__(
        self,
        dim: int,
        context: int,
        width: int,
        depth: int,
        *,
        times: int = 2,
        eps: float = 1e-6,
        time_eps: float = 1e-5,
        features: int = 256,
        flow_map: bool = True,
    ) -> None:
        super().__init__()
        if times not in (0, 2):
            raise ValueError(f"times must be 2 (start and end of a step) or 0, got {times}")
        self.width, self.depth, self.eps, self.flow_map = width, depth, eps, flow_map
        self.input_proj, self.cond_proj = nn.Linear(dim, width), nn.Linear(context, width)
        self.timestep_embeddings = nn.ModuleList(
            [_TimeEmbedding(width, features, time_eps) for _ in range(times)]
        )
        self.layers = nn.ModuleList([_Block(width, eps) for _ in range(depth)])
        self.final_layer = _FinalLayer(width, dim, eps)

    def forward(self, x: Tensor, level: Tensor, c: Tensor, end: Tensor | None = None) -> Tensor:
        """x `[B, d]`, level and end `[B]` or `[1]`, c `[B, context]` -> `[B, d]`.

        Without `end` it is the level itself: the velocity at that level.
        """
        times = torch.stack([level, level if end is None else end], -1)
        return -self.evaluate_at(x, times, c)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], **options: Any) -> PocketHead:
        width, dim = tensors["input_proj.weight"].shape
        context = tensors["cond_proj.weight"].shape[1]
        times, depth = (count_modules(tensors, of) for of in ("timestep_embeddings", "layers"))
        if times:
            features = tensors["timestep_embeddings.0.fc1.weight"].shape[1]
            options = {"features": features, **options}
        return cls(dim, context, width, depth, times=times, **options)

    def plain_layers(self) -> tuple[nn.Module, nn.ModuleList, nn.Module]:
        return self.input_proj, self.layers, self.final_layer

    def time_arguments(self, levels: Tensor) -> Tensor:
        """(level, end) of each row.

        Raises:
            ValueError: rows that repeat a level, where `flow_map` has no next one to end at.
        """
        if not self.flow_map or not self.timestep_embeddings or not len(levels):
            return torch.stack([levels, levels], -1)
        following, clean = levels[1:], torch.zeros_like(levels[:1])
        repeated = following == levels[:-1]
        if levels.dim() == 1 and levels.is_cpu and bool(repeated.any()):
            raise ValueError(
                "a flow-map head needs another level at each row of the table; set flow_map=False "
                "for solvers that call it several times at one level"
            )
        # Past the end of a sample's own table its last level repeats.
        return torch.stack([levels, torch.cat([following.masked_fill(repeated, 0), clean])], -1)

    def embed_time(self, arguments: Tensor) -> Tensor:
        if not self.timestep_embeddings:
            return arguments.new_zeros(
                len(arguments), self.width, dtype=self.cond_proj.weight.dtype
            )
        embeddings = enumerate(self.timestep_embeddings)
        return sum(embed(1 - arguments[:, i : i + 1]) for i, embed in embeddings) / 2

    def embed_context(self, c: Tensor) -> Tensor:
        return self.cond_proj(c)

    def modulation_layer(self) -> Layer:
        blocks = [(block.adaln_proj, block.norm.weight, block.norm.bias) for block in self.layers]
        return fold_modulations(blocks, self.final_layer.adaln_proj)

    def loop_layers(self) -> list[Layer]:
        inner = [layer for block in self.layers for layer in (block.fc1, block.fc2)]
        layers = [Layer(layer.weight, layer.bias) for layer in (self.input_proj, *inner)]
        final = self.final_layer.proj
        return [*layers, Layer(-final.weight, -final.bias)]
