"""The diffusion head of VibeVoice (Microsoft 2025), with the state-dict names of transformers."""

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
    sinusoidal_embedding,
    swiglu,
)


class _TimeMLP(nn.Module):
    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, width, bias=False)
        self.fc2 = nn.Linear(width, width, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc2(F.silu(self.fc1(features)))


class _SwiGLU(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class _Block(nn.Module):
    def __init__(self, width: int, inner: int, eps: float) -> None:
        super().__init__()
        self.ffn = _SwiGLU(width, inner)
        self.norm = nn.RMSNorm(width, eps=eps)
        self.linear = nn.Linear(width, 3 * width, bias=False)

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        return modulated_block(h, self.linear(F.silu(y)), self.norm, self.ffn)


class _FinalLayer(nn.Module):
    def __init__(self, width: int, out: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=eps, elementwise_affine=False)
        self.linear_1 = nn.Linear(width, 2 * width, bias=False)
        self.linear_2 = nn.Linear(width, out, bias=False)

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        return modulated_output(h, self.linear_1(F.silu(y)), self.norm, self.linear_2)


class VibeVoiceHead(Head):
    """`head(x, level, c)`, level the training timestep; no biases anywhere.

    Args:
        dim: elements of a latent, d.
        context: channels of the context; transformers has width.
        width, depth, inner: of the blocks; `inner` is the width of the SwiGLU, 3 width by default.
        eps: of the RMS norms.
        features: of the sinusoidal embedding.
    """

    norm, mlp = "rms", "gated"
    marks = Marks(
        "final_layer.linear_1.weight",
        "noisy_images_proj.weight",
        "VibeVoice (noisy_images_proj, layers, final_layer)",
    )

    def __init__(
        self,
        dim: int,
        context: int,
        width: int,
        depth: int,
        inner: int | None = None,
        *,
        eps: float = 1e-5,
        features: int = 256,
    ) -> None:
        super().__init__()
        self.width, self.depth, self.eps, self.features = width, depth, eps, features
        self.noisy_images_proj = nn.Linear(dim, width, bias=False)
        self.cond_proj = nn.Linear(context, width, bias=False)
        self.timestep_proj = _TimeMLP(width, features)
        inner = 3 * width if inner is None else inner
        self.layers = nn.ModuleList([_Block(width, inner, eps) for _ in range(depth)])
        self.final_layer = _FinalLayer(width, dim, eps)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], **options: Any) -> VibeVoiceHead:
        width, dim = tensors["noisy_images_proj.weight"].shape
        context = tensors["cond_proj.weight"].shape[1]
        features = tensors["timestep_proj.fc1.weight"].shape[1]
        inner = tensors["layers.0.ffn.gate_proj.weight"].shape[0]
        depth = count_modules(tensors, "layers")
        return cls(dim, context, width, depth, inner, features=features, **options)

    def plain_layers(self) -> tuple[nn.Module, nn.ModuleList, nn.Module]:
        return self.noisy_images_proj, self.layers, self.final_layer

    def embed_time(self, arguments: Tensor) -> Tensor:
        features = sinusoidal_embedding(arguments[:, 0], self.features)
        return self.timestep_proj(features.to(self.cond_proj.weight.dtype))

    def embed_context(self, c: Tensor) -> Tensor:
        return self.cond_proj(c)

    def modulation_layer(self) -> Layer:
        blocks = [(block.linear, block.norm.weight, None) for block in self.layers]
        return fold_modulations(blocks, self.final_layer.linear_1)

    def loop_layers(self) -> list[Layer]:
        layers = [Layer(self.noisy_images_proj.weight, None)]
        for block in self.layers:
            ffn = block.ffn
            layers.append(Layer(torch.cat([ffn.gate_proj.weight, ffn.up_proj.weight]), None))
            layers.append(Layer(ffn.down_proj.weight, None))
        return [*layers, Layer(self.final_layer.linear_2.weight, None)]
