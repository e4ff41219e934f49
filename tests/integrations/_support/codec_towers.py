"""Towers of VibeVoice's codec small enough for any test, and streams through them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.vibevoice_acoustic_tokenizer import (
    modeling_vibevoice_acoustic_tokenizer as stock,
)
from transformers.models.vibevoice_acoustic_tokenizer.configuration_vibevoice_acoustic_tokenizer import (  # noqa: E501
    VibeVoiceAcousticTokenizerConfig,
    VibeVoiceAcousticTokenizerEncoderConfig,
)

# Of 100 samples a token: five tokens are more rows than the packed products of float32 take.
SIZES = {"num_filters": 8, "downsampling_ratios": [4, 5, 5], "depths": [2, 1, 1, 2]}
KINDS = ("decoder", "encoder")
TOKENS = (1, 5, 2, 1)  # of the chunks of a stream


def codec(dtype: torch.dtype = torch.float32, **sizes: Any) -> SimpleNamespace:
    """What `swap_codec` reads of a model, with random parameters of which every one matters."""
    sizes = SIZES | sizes
    generator = torch.Generator().manual_seed(0)
    decoder = stock.VibeVoiceAcousticTokenizerDecoderModel(
        VibeVoiceAcousticTokenizerConfig(hidden_size=6, **sizes).decoder_config
    )
    encoder = stock.VibeVoiceAcousticTokenizerEncoderModel(
        VibeVoiceAcousticTokenizerEncoderConfig(hidden_size=10, **sizes)
    )
    for tower in (decoder, encoder):
        for name, p in tower.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.dim() > 1:
                fan_in = p.shape[1:].numel() if "convtr" not in name else 2 * p.shape[0]
                p.data = noise / fan_in**0.5
            else:
                p.data = 0.5 * noise + (0 if name.endswith("bias") else 1)
        tower.to(dtype).eval().requires_grad_(False)
    audio_tower = SimpleNamespace(decoder=decoder)
    return SimpleNamespace(
        model=SimpleNamespace(audio_tower=audio_tower, semantic_tokenizer_encoder=encoder)
    )


def tower_of(model: Any, kind: str) -> nn.Module:
    return (
        model.model.audio_tower.decoder
        if kind == "decoder"
        else model.model.semantic_tokenizer_encoder
    )


def twin(tower: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A stock copy, in another dtype where one is given."""
    other = copy.copy(tower)
    vars(other).pop("forward", None)
    other = copy.deepcopy(other)
    return other if dtype is None else other.to(dtype)


def chunks(
    tower: nn.Module, batch: int = 1, tokens: Sequence[int] = TOKENS, seed: int = 1
) -> list[Tensor]:
    """Inputs of `tower` in its dtype, so many tokens each."""
    decodes = "Decoder" in type(tower).__name__
    channels, steps = (tower.config.hidden_size, 1) if decodes else (1, 100)
    generator = torch.Generator().manual_seed(seed)
    like = next(tower.parameters())
    return [
        torch.randn(batch, channels, steps * count, generator=generator).to(like)
        for count in tokens
    ]


def result(output: Any) -> Tensor:
    """Audio or latents."""
    return output[0]


def stream(
    towers: nn.Module | Sequence[nn.Module], inputs: Sequence[Tensor]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Results of each chunk and what the cache holds at the end; a tower for each chunk, or one."""
    towers = [towers] * len(inputs) if isinstance(towers, nn.Module) else towers
    cache, found = None, []
    for tower, x in zip(towers, inputs, strict=True):
        output = tower(x, padding_cache=cache, use_cache=True)
        cache = output.padding_cache
        found.append(result(output))
    return found, {key: layer.cache for key, layer in cache.layers.items()}


def error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The root mean square of the differences over that of what is expected."""
    a, b = (torch.cat([t.double().flatten() for t in part]) for part in (found, expected))
    return float((a - b).norm() / b.norm())
