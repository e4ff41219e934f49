"""The context encoder that a researcher writes: plain eager PyTorch, the rival of ours.

It has the parameters of `ardiff.ar.patch_context.PatchContext`, by the same names. Its cache is one
preallocated tensor, written in place and read by `scaled_dot_product_attention`.
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


class ReferenceEncoder(nn.Module):
    """Contexts of all patches at once (`encode`) or one after another (`step`).

    Args:
        patch_dim: elements of a patch, d.
        patches: patches of an image, K.
        width, depth, heads: of the transformer; the contexts have `width` channels.
    """

    def __init__(self, patch_dim: int, patches: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.patches, self.width, self.heads = patches, width, heads
        self.start = nn.Parameter(torch.empty(width))
        self.position = nn.Parameter(torch.empty(patches, width))
        self.embed = nn.Linear(patch_dim, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)

    def encode(self, patches: Tensor) -> Tensor:
        """Patches `[B, n, d]` -> `[B, min(n + 1, K), width]`, the last for the patch after them."""
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
        """The patch just made `[B, d]`, None first -> the context of the next one `[B, width]`."""
        batch = cache.keys.shape[1]
        x = self.start.expand(batch, -1) if patch is None else self.embed(patch)
        x = (x + self.position[cache.length])[:, None]
        for layer, block in enumerate(self.blocks):
            x = block(x, cache, layer)
        cache.length += 1
        return self.norm(x[:, 0])


def reference_encoder(context: nn.Module) -> ReferenceEncoder:
    """With a copy of the weights of a `PatchContext`, on its device."""
    c = context.config
    made = ReferenceEncoder(context.patch_dim, c.positions, c.width, c.depth, c.heads)
    made.load_state_dict(context.state_dict())
    return made.to(context.device).requires_grad_(False)
