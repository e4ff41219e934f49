"""The context encoder: a causal transformer over patches, with a KV cache for sampling.

Context k is what the head needs to know to draw patch k: a function of patches 0..k-1 alone. The
token at position k is the embedding of patch k-1 (a learned start token at k = 0) plus a learned
position.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class SlicedCache:
    """Keys and values `[depth, B, heads, positions, head_dim]` of the first `length` tokens."""

    keys: Tensor
    values: Tensor
    length: int = 0


class Block(nn.Module):
    """A pre-norm transformer block: causal self-attention, then a GELU MLP four times as wide."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, cache: SlicedCache | None = None, layer: int = 0) -> Tensor:
        """`[B, n, width]` -> the same shape; with a cache, x is the one token that follows it."""
        batch, n, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, n, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if cache is None:
            attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            stop = cache.length + n
            cache.keys[layer, :, :, cache.length : stop] = key
            cache.values[layer, :, :, cache.length : stop] = value
            attended = F.scaled_dot_product_attention(
                query, cache.keys[layer, :, :, :stop], cache.values[layer, :, :, :stop]
            )
        x = x + self.proj(attended.transpose(1, 2).reshape(batch, n, width))
        return x + self.mlp(self.norm2(x))


class ContextEncoder(nn.Module):
    """Contexts of all patches at once (`encode`, training) or one after another (`step`, sampling).

    Args:
        patch_dim: elements of a patch, d.
        patches: patches of an image, K.
        width, depth, heads: of the transformer; the contexts have `width` channels.
    """

    def __init__(self, patch_dim: int, patches: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(
                f"context width must be a multiple of its heads, got {width} and {heads}"
            )
        self.patches, self.width, self.heads = patches, width, heads
        self.start = nn.Parameter(torch.randn(width) * 0.02)
        self.position = nn.Parameter(torch.randn(patches, width) * 0.3)
        self.embed = nn.Linear(patch_dim, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)

    def encode(self, patches: Tensor) -> Tensor:
        """Contexts of a prefix of n patches and of the patch after it.

        Args:
            patches: `[B, n, d]`, 0 <= n <= K.

        Returns:
            `[B, min(n + 1, K), width]`; context k depends on patches before k only.
        """
        known = patches[:, : self.patches - 1]
        start = self.start.expand(len(patches), 1, -1)
        x = torch.cat([start, self.embed(known)], 1) + self.position[: known.shape[1] + 1]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def new_cache(self, batch: int) -> SlicedCache:
        shape = (len(self.blocks), batch, self.heads, self.patches, self.width // self.heads)
        return SlicedCache(self.start.new_empty(shape), self.start.new_empty(shape))

    def step(self, patch: Tensor | None, cache: SlicedCache) -> Tensor:
        """Takes in the patch just made and returns the context of the next one.

        Args:
            patch: `[B, d]`, None before the first patch.
            cache: from `new_cache`; it is extended in place.

        Returns:
            `[B, width]`, equal to `encode`'s to rounding.

        Raises:
            ValueError: past the last patch, or a patch missing or given out of turn.
        """
        position = cache.length
        if position >= self.patches:
            raise ValueError(f"the cache already holds all {self.patches} patches of these images")
        if (patch is None) != (position == 0):
            raise ValueError(
                f"patch must be None before the first patch only, at position {position}"
            )
        if patch is None:
            x = self.start.expand(cache.keys.shape[1], -1)
        else:
            x = self.embed(patch)
        x = (x + self.position[position])[:, None]
        for layer, block in enumerate(self.blocks):
            x = block(x, cache, layer)
        cache.length += 1
        return self.norm(x[:, 0])
