"""A whole model of MAR (Li et al. 2024) in plain PyTorch: rival and oracle of the integration.

It has the state-dict names and the methods of the published models. Tokens are drawn in sets, in
random order: an encoder reads the known tokens behind a buffer of class embeddings, a decoder all
places, those still unknown as one learned token, and the diffusion loss of `reference_mar` draws
the next set from the decoder's outputs there. Nothing in it is slow on purpose: both conditions of
guidance are one batch, sizes of sets are numbers made before the loop, attention is PyTorch's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .reference_mar import DiffLoss, randomise


@dataclass(frozen=True)
class Size:
    """Width, depth (of encoder and of decoder) and heads; places to a side, channels of a token,
    places of the buffer, classes; depth, width and steps of the diffusion loss."""

    width: int
    depth: int
    heads: int
    loss_depth: int
    loss_width: int
    side: int = 16
    channels: int = 16
    buffer: int = 64
    classes: int = 1000
    steps: int = 100


SIZES = {
    "mar-b": Size(768, 12, 12, 6, 1024),
    "mar-l": Size(1024, 16, 16, 8, 1280),
    "mar-h": Size(1280, 20, 16, 12, 1536),
    "tiny": Size(64, 3, 4, 2, 48, side=4, channels=6, buffer=6, classes=10),
}


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(x).unflatten(2, (3, self.num_heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.act = nn.Linear(width, 4 * width), nn.GELU()
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=1e-6), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, eps=1e-6), Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class MAR(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        width, places = size.width, size.side**2
        self.seq_h = self.seq_w = size.side
        self.seq_len, self.buffer_size = places, size.buffer
        self.vae_embed_dim, self.patch_size, self.token_embed_dim = size.channels, 1, size.channels
        self.class_emb = nn.Embedding(size.classes, width)
        self.fake_latent = nn.Parameter(torch.zeros(1, width))
        self.z_proj = nn.Linear(size.channels, width)
        self.z_proj_ln = nn.LayerNorm(width, eps=1e-6)
        rows = places + size.buffer
        self.encoder_pos_embed_learned = nn.Parameter(torch.zeros(1, rows, width))
        self.encoder_blocks = nn.ModuleList(Block(width, size.heads) for _ in range(size.depth))
        self.encoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_embed = nn.Linear(width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, rows, width))
        self.decoder_blocks = nn.ModuleList(Block(width, size.heads) for _ in range(size.depth))
        self.decoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, places, width))
        self.diffloss = DiffLoss(size.channels, width, size.loss_depth, size.loss_width, size.steps)

    def forward_mae_encoder(self, x: Tensor, mask: Tensor, class_embedding: Tensor) -> Tensor:
        """Tokens `[B, L, d]`, of which those with mask 0 are known, and classes `[B, D]` to
        `[B, buffer + known, D]`."""
        x = self.z_proj(x.to(self.z_proj.weight.dtype))
        buffer = class_embedding[:, None].expand(-1, self.buffer_size, -1)
        x = self.z_proj_ln(torch.cat([buffer, x], 1) + self.encoder_pos_embed_learned)
        x = x[self._read(mask)].view(len(mask), -1, x.shape[2])
        for block in self.encoder_blocks:
            x = block(x)
        return self.encoder_norm(x)

    def forward_mae_decoder(self, x: Tensor, mask: Tensor) -> Tensor:
        """What the encoder gives to `[B, L, D]`."""
        x, read = self.decoder_embed(x), self._read(mask)
        places = self.mask_token.to(x.dtype).repeat(len(mask), read.shape[1], 1)
        places[read] = x.flatten(0, 1)
        x = places + self.decoder_pos_embed_learned
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_norm(x)[:, self.buffer_size :] + self.diffusion_pos_embed_learned

    def _read(self, mask: Tensor) -> Tensor:
        """Which of buffer and places are read, bool `[B, buffer + L]`."""
        return F.pad(mask == 0, (self.buffer_size, 0), value=True)

    def sample_orders(self, bsz: int) -> Tensor:
        """The places of each sample, the last one drawn first; int64 `[B, L]`."""
        return torch.rand(bsz, self.seq_len, device=self.mask_token.device).argsort(1)

    def unpatchify(self, tokens: Tensor) -> Tensor:
        """Tokens `[B, L, d]` to `[B, d, h, w]`."""
        return tokens.transpose(1, 2).reshape(len(tokens), -1, self.seq_h, self.seq_w)

    @torch.no_grad()
    def sample_tokens(
        self,
        bsz: int,
        num_iter: int = 64,
        cfg: float = 1.0,
        cfg_schedule: str = "linear",
        labels: Tensor | None = None,
        temperature: float = 1.0,
        progress: bool = False,
    ) -> Tensor:
        """Latents `[B, d, h, w]` of labels int64 `[B]`; None draws them without a class."""
        length, device = self.seq_len, self.mask_token.device
        null = self.fake_latent.expand(bsz, -1)
        classes = null if labels is None else self.class_emb(labels)
        guided = cfg != 1.0
        classes = torch.cat([classes, null]) if guided else classes
        orders = self.sample_orders(bsz)
        tokens = torch.zeros(bsz, length, self.token_embed_dim, device=device)
        mask, unknown = torch.ones(bsz, length, device=device), length
        for step in range(num_iter):
            x, m = (torch.cat([t, t]) if guided else t for t in (tokens, mask))
            z = self.forward_mae_decoder(self.forward_mae_encoder(x, m, classes), m)
            later = math.floor(length * math.cos(math.pi / 2 * (step + 1) / num_iter))
            later = max(1, min(unknown - 1, later))
            following = torch.zeros_like(mask).scatter(1, orders[:, :later], 1.0)
            drawn = mask.bool() if step == num_iter - 1 else mask != following
            weight = 1 + (cfg - 1) * (length - later) / length if cfg_schedule == "linear" else cfg
            z = z[torch.cat([drawn, drawn]) if guided else drawn]
            found = self.diffloss.sample(z, temperature, weight)
            tokens[drawn] = found[: len(found) // 2] if guided else found
            mask, unknown = following, later
        return self.unpatchify(tokens)


@torch.no_grad()
def randomised(size: Size, seed: int = 0) -> MAR:
    """A model with random weights: Xavier's for the transformers, as untrained models have them,
    with norms and biases that are not trivial, and a diffusion loss whose tokens are of order 1."""
    model = MAR(size)
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        normal = torch.randn(p.shape, generator=generator)
        if "norm" in name or "_ln" in name:
            p.copy_(normal * 0.1 + (1.0 if name.endswith("weight") else 0.0))
        elif p.dim() == 2 and name.endswith("weight") and "class" not in name:
            p.copy_(normal * (2 / sum(p.shape)) ** 0.5)
        else:  # biases, embeddings, learned tokens
            p.copy_(normal * 0.02)
    randomise(model.diffloss, seed)
    return model.eval().requires_grad_(False)
