"""A head of SwiGLU blocks (Shazeer 2020) behind LayerNorm, with the embeddings of MAR's."""

from __future__ import annotations

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
    swiglu,
)
from .mar import TimestepEmbedder


class _SwiGLU(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, inner), nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(swiglu(self.gate(x), self.up(x)))


class _Block(nn.Module):
    def __init__(self, width: int, inner: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps)
        self.mlp = _SwiGLU(width, inner)
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        return modulated_block(h, self.modulation(F.silu(y)), self.norm, self.mlp)


class _FinalLayer(nn.Module):
    def __init__(self, width: int, out: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps, elementwise_affine=False)
        self.linear = nn.Linear(width, out)
        self.modulation = nn.Linear(width, 2 * width)

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        return modulated_output(h, self.modulation(F.silu(y)), self.norm, self.linear)


class SwiGLUHead(Head):
    """`head(x, level, c)` or, in a loop, `f = head.hoist(levels, c)` and `f(row, x)`.

    Args:
        dim: elements of a patch, d.
        context: channels of the context.
        width, depth, inner: of the blocks; `inner` is the width of the SwiGLU, 2 width by default.
        out: output channels, d or 2 d (learned-range variance).
        eps: of the norms.
    """

    norm, mlp = "layer", "gated"
    marks = Marks(
        "final_layer.modulation.weight",
        "input_proj.weight",
        "SwiGLU (input_proj, blocks, final_layer)",
    )

    def __init__(
        self,
        dim: int,
        context: int,
        width: int,
        depth: int,
        inner: int | None = None,
        out: int | None = None,
        *,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.width, self.depth, self.eps = width, depth, eps
        inner = 2 * width if inner is None else inner
        self.time_embed, self.cond_embed = TimestepEmbedder(width), nn.Linear(context, width)
        self.input_proj = nn.Linear(dim, width)
        self.blocks = nn.ModuleList([_Block(width, inner, eps) for _ in range(depth)])
        self.final_layer = _FinalLayer(width, dim if out is None else out, eps)
        zero = [layer.modulation for layer in (*self.blocks, self.final_layer)]
        for layer in (*zero, self.final_layer.linear):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], **options: Any) -> SwiGLUHead:
        width, dim = tensors["input_proj.weight"].shape
        context = tensors["cond_embed.weight"].shape[1]
        inner = tensors["blocks.0.mlp.gate.weight"].shape[0]
        out, depth = len(tensors["final_layer.linear.weight"]), count_modules(tensors, "blocks")
        return cls(dim, context, width, depth, inner, out, **options)

    def plain_layers(self) -> tuple[nn.Module, nn.ModuleList, nn.Module]:
        return self.input_proj, self.blocks, self.final_layer

    def embed_time(self, arguments: Tensor) -> Tensor:
        return self.time_embed(arguments[:, 0])

    def embed_context(self, c: Tensor) -> Tensor:
        return self.cond_embed(c)

    def modulation_layer(self) -> Layer:
        blocks = [(block.modulation, block.norm.weight, block.norm.bias) for block in self.blocks]
        return fold_modulations(blocks, self.final_layer.modulation)

    def loop_layers(self) -> list[Layer]:
        layers = [Layer(self.input_proj.weight, self.input_proj.bias)]
        for block in self.blocks:
            gate, up, down = block.mlp.gate, block.mlp.up, block.mlp.down
            bias = torch.cat([gate.bias, up.bias])
            layers += [Layer(torch.cat([gate.weight, up.weight]), bias)]
            layers += [Layer(down.weight, down.bias)]
        return [*layers, Layer(self.final_layer.linear.weight, self.final_layer.linear.bias)]
