"""A causal LM of the `transformers` package as context encoder, with its own cache or with ours.

The package is not needed to import this module: it works on models that the caller made.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .encoder import CausalEncoder
from .qwen2 import load_layers


class StockContext:
    """The layers of a stock model with the cache that it makes itself.

    All sequences of its batch have one length. For ragged rows, paging and `AREngine` take the
    weights into a `CausalEncoder` with :func:`encoder_of`.

    Args:
        model: a causal LM or its base model; called with ``inputs_embeds``.
    """

    def __init__(self, model: Any) -> None:
        self.backbone = model.base_model
        self._cache: Any = None

    def reset(self) -> None:
        """Forgets all tokens; the next batch may have another size."""
        self._cache = None

    @torch.no_grad()
    def append(self, x: Tensor) -> Tensor:
        """Takes in tokens `[B, T, width]` of any T behind those before.

        Returns:
            Hidden states `[B, T, width]`, after the last norm.
        """
        out = self.backbone(inputs_embeds=x, past_key_values=self._cache, use_cache=True)
        self._cache = out.past_key_values
        return out.last_hidden_state.clone()  # a captured model answers in the same memory again

    prefill = append


def encoder_of(model: Any, positions: int | None = None) -> CausalEncoder:
    """A `CausalEncoder` with the weights of a stock model of Qwen2, Qwen3 or Llama type.

    Args:
        model: a causal LM or its base model.
        positions: length of the rotary tables; None for max_position_embeddings.

    Raises:
        CheckpointError, ValueError: a model that the encoder cannot follow; see `load_layers`.
    """
    return load_layers(
        model.config.to_dict(), model.base_model.state_dict(), positions, type(model).__name__
    )
