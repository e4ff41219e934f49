"""The diffusion head of VibeVoice (Microsoft 2025), with the state-dict names of transformers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ardiff.models.head import Head, Layer, fold_modulations, sinusoidal_embedding


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
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class _Block(nn.Module):
    """x + gate * SwiGLU(RMSNorm(x) (1 + scale) + shift)."""

    def __init__(self, width: int, inner: int, eps: float) -> None:
        super().__init__()
        self.ffn = _SwiGLU(width, inner)
        self.norm = nn.RMSNorm(width, eps=eps)
        self.linear = nn.Linear(width, 3 * width, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale, gate = self.linear(F.silu(y)).chunk(3, -1)
        return x + gate * self.ffn(self.norm(x) * (1 + scale) + shift)


class _FinalLayer(nn.Module):
    def __init__(self, width: int, out: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.linear_1 = nn.Linear(width, 2 * width, bias=False)
        self.linear_2 = nn.Linear(width, out, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale = self.linear_1(F.silu(y)).chunk(2, -1)
        return self.linear_2(F.rms_norm(x, x.shape[-1:], eps=self.eps) * (1 + scale) + shift)


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

    def forward(self, x: Tensor, level: Tensor, c: Tensor) -> Tensor:
        """x `[B, d]`, level `[B]` or `[1]`, c `[B, context]` -> `[B, d]`."""
        y = self.embed_time(level[:, None]) + self.cond_proj(c)
        h = self.noisy_images_proj(x)
        for layer in self.layers:
            h = layer(h, y)
        return self.final_layer(h, y)

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
