"""A model of MAR's form around the plain diffusion loss of the benchmarks.

Two transformer blocks, which the integration does not touch, stand for MAR's encoder and decoder.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from benchmarks.reference_mar import DiffLoss, RespacedDDPM, randomise  # noqa: E402
from tests._support import small_models  # noqa: E402

__all__ = [
    "CONTEXT", "DIM", "DiffLoss", "MARLike", "RespacedDDPM", "loss_of", "mar_like", "randomise",
]  # fmt: skip

DIM, CONTEXT = 6, 24


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


def mar_like(**sizes) -> MARLike:
    """With random weights whose samples are of order 1."""
    model = small_models.randomise(MARLike(**sizes)).eval()
    randomise(model.diffloss)
    return model


def loss_of(
    steps: int | list[int] = 100, dim: int = DIM, width: int = 48, depth: int = 3
) -> DiffLoss:
    return randomise(DiffLoss(dim, CONTEXT, depth, width, steps)).eval()
