"""The adaLN-MLP head of MAR (Li et al. 2024); NextStep-1 and NOVA have heads of the same form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .base import (
    Head,
    Layer,
    Marks,
    count_modules,
    fold_modulations,
    modulated_block,
    modulated_output,
    sinusoidal_embedding,
)

_EPS = 1e-6


class TimestepEmbedder(nn.Module):
    def __init__(self, width: int, features: int = 256) -> None:
        super().__init__()
        self.features = features
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, level: Tensor) -> Tensor:
        return self.mlp(sinusoidal_embedding(level, self.features).to(self.mlp[0].weight.dtype))


class ResBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=_EPS)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        return modulated_block(h, self.adaLN_modulation(y), self.in_ln, self.mlp)


class FinalLayer(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=_EPS, elementwise_affine=False)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        return modulated_output(h, self.adaLN_modulation(y), self.norm_final, self.linear)


class DiffusionHead(Head):
    """MAR's SimpleMLPAdaLN: `head(x, level, c)` or, in a loop, `f = head.hoist(levels, c)` and
    `f(row, x)`.

    Args:
        dim: elements of a patch, d.
        context: channels of the context.
        width, depth: of the MLP.
        out: output channels, d or 2 d (learned-range variance).
    """

    norm, mlp = "layer", "plain"
    marks = Marks(
        "final_layer.adaLN_modulation.1.weight",
        "input_proj.weight",
        "MAR (input_proj, res_blocks, final_layer)",
    )

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

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], **options: Any) -> DiffusionHead:
        width, dim = tensors["input_proj.weight"].shape
        context = tensors["cond_embed.weight"].shape[1]
        out = tensors["final_layer.linear.weight"].shape[0]
        return cls(dim, context, width, count_modules(tensors, "res_blocks"), out, **options)

    def plain_layers(self) -> tuple[nn.Module, nn.ModuleList, nn.Module]:
        return self.input_proj, self.res_blocks, self.final_layer

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
