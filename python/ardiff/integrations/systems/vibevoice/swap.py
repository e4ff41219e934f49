"""The codec of VibeVoice in streaming use: its acoustic decoder and its semantic encoder."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..swaps import Choices, Swap, left
from .tower import MOST_TOKENS, Tower, layers_of, reason_against

PART = "codec"


def swap_codec(model: nn.Module, choices: Choices) -> list[Swap]:
    """Replaces the `forward` of both towers of the codec for chunks of a stream.

    Args:
        model: a VibeVoiceForConditionalGeneration of transformers.
        choices: `weights` holds for the packed matrices of all layers.

    Returns:
        One `Swap` for the acoustic decoder and one for the semantic encoder.
    """
    towers = {
        "acoustic decoder": model.model.audio_tower.decoder,
        "semantic encoder": model.model.semantic_tokenizer_encoder,
    }
    return [_swap(name, tower, choices) for name, tower in towers.items()]


def _swap(name: str, tower: Any, choices: Choices) -> Swap:
    reason = reason_against(tower)
    if reason:
        return left(PART, name, reason, [tower])
    kinds: dict[str, int] = {}
    for layer in layers_of(tower):
        kind = type(layer).__name__.removeprefix("VibeVoiceAcousticTokenizer")
        kinds[kind] = kinds.get(kind, 0) + 1
    before = f"{name}: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    ours = Tower(tower, choices.weights, choices.batch_invariant)
    ours.prepare()
    weights = choices.weights or str(next(tower.parameters()).dtype)[6:]
    after = (
        f"packed_linear, {weights} weights, for chunks of a stream of up to {MOST_TOKENS} tokens"
    )
    swap = Swap(PART, before, after, modules=[tower], memory_bytes=ours.memory_bytes)
    swap.set(tower, "forward", ours.forward)
    return swap
