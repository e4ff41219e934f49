"""A model over a causal encoder with a KV cache: what `ardiff.ar.engine.AREngine` drives."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..models.image_model import ARModel
from .encoder import CausalEncoder


class PatchModel(nn.Module):
    """p(patches | prompt), `block` patches per step, in any order of places.

    A sequence is a prompt (any tokens, taken in causally), then `block` start tokens, then the
    tokens of the patches, `block` at a time. The hidden state of token i of a block is the context
    of patch i of the next one. With a block above 1 the tokens of a block see each other.

    Args:
        encoder: of contexts.
        denoiser: a model as :func:`ardiff.loop.run.run` takes it; its condition is a context.
        patch_dim: elements of a patch, d.
        path, prediction: what the denoiser was trained on.
        block: patches made at each step, at most 64.
        places: patches of a sequence, for a model that makes them in any order: a token then says
            which place the next patch has. 0 for a model of one order and any length.
        grid: time-grid options of `ardiff.solver` that the model is sampled on.

    Attributes:
        null: context `[width]` that stands for none, or None; without one, guidance compares with
            a stream that has no prompt.
        low, high: `[places, d]`, between which each patch is clipped, or None.
    """

    def __init__(
        self,
        encoder: CausalEncoder,
        denoiser: Any,
        patch_dim: int,
        *,
        path: str,
        prediction: str,
        block: int = 1,
        places: int = 0,
        grid: dict | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= block <= 64:
            raise ValueError(f"block must lie in [1, 64], got {block}")
        width = encoder.config.width
        self.encoder, self.denoiser, self.patch_dim = encoder, denoiser, patch_dim
        self.path, self.prediction, self.block, self.grid = path, prediction, block, grid or {}
        self.embed = nn.Linear(patch_dim, width)
        self.start = nn.Parameter(torch.randn(block, width) * 0.02)
        self.place = nn.Parameter(torch.randn(places, width) * 0.3) if places else None
        self.null: Tensor | None = None
        self.register_buffer("low", None, persistent=False)
        self.register_buffer("high", None, persistent=False)

    def tokens(self, last: Tensor, fresh: Tensor, target: Tensor) -> Tensor:
        """The next tokens of some sequences.

        Args:
            last: the block of patches made last, `[B, block, d]`, of any dtype.
            fresh: bool `[B]`, sequences that have made none and get the start tokens.
            target: int64 `[B, block]`, the places of the patches to be made.

        Returns:
            `[B, block, width]`.
        """
        tokens = torch.where(fresh[:, None, None], self.start, self.embed(last.to(self.start)))
        return tokens if self.place is None else tokens + self.place[target]

    def contexts(
        self, patches: Tensor, order: Tensor | None = None, prompt: Tensor | None = None
    ) -> Tensor:
        """The contexts of all patches of whole sequences at once, for training.

        Args:
            patches: `[B, K, d]`, in the order they are made.
            order: int64 `[B, K]`, their places; default 0..K-1.
            prompt: tokens `[B, n, width]`, or None.

        Returns:
            `[B, K, width]`; the context of a patch depends on the blocks before its own.
        """
        batch, count, block = len(patches), patches.shape[1], self.block
        if order is None:
            order = torch.arange(count, device=patches.device).expand(batch, count)
        blocks = -(-count // block)
        target = torch.cat([order, order[:, -1:].expand(batch, blocks * block - count)], 1)
        known = patches[:, : (blocks - 1) * block]
        tokens = torch.cat([self.start.expand(batch, -1, -1), self.embed(known.to(self.start))], 1)
        if self.place is not None:
            tokens = tokens + self.place[target]
        at = torch.arange(block, device=patches.device).expand(batch, block)
        position = torch.cat([at, block + order[:, : known.shape[1]]], 1)
        first = 0 if prompt is None else prompt.shape[1]
        if first:
            ahead = torch.arange(first, device=patches.device).expand(batch, first)
            tokens = torch.cat([prompt, tokens], 1)
            position = torch.cat([ahead, first + position], 1)
        index = torch.arange(tokens.shape[1], device=patches.device)
        turn = torch.where(index < first, index, first + (index - first) // block * block)
        hidden = self.encoder(tokens, position, turn <= turn[:, None] if block > 1 else None)
        return hidden[:, first : first + count]

    def clip(self, patch: Tensor, place: Tensor) -> Tensor:
        """Patches `[B, d]` at int64 `[B]` places, within what they may hold."""
        if self.low is None:
            return patch
        return patch.clamp(self.low[place], self.high[place])

    def finished(self, patch: Tensor, place: Tensor) -> Tensor:
        """Patches `[B, d]` at int64 `[B]` places as they are given back: themselves."""
        return patch


Sampled = PatchModel | ARModel  # what a step of `ardiff.ar.step` samples from


def sampled_model(model: Sampled) -> Sampled:
    """What `AREngine` samples from: `model`; a copy of an `ARModel`, which may go on training.

    Raises:
        TypeError: neither a `PatchModel` nor an `ARModel`.
        ValueError: a dtype that the engine cannot sample in.
    """
    if not isinstance(model, (PatchModel, ARModel)):
        raise TypeError(
            f"AREngine: model must be a PatchModel or an ARModel, got {type(model).__name__}; "
            "functions of your own run in ARSampler(encode=, denoise=)"
        )
    own, dtype = model.start.dtype, model.encoder.dtype
    if own != dtype or dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(
            "AREngine: the model and its encoder must be float32 or bfloat16, both the same, got "
            f"{str(own)[6:]} and an encoder of {str(dtype)[6:]}"
        )
    if isinstance(model, ARModel):
        model = copy.deepcopy(model).eval().requires_grad_(False)
    return model
