"""Pocket-TTS of transformers with random weights at its published size, for the suite `systems`:
from a prompt of 40 tokens to audio, by `generate` and its audio tokenizer.

It is told never to end, so that a run has the same number of frames whatever the weights say.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

UNIT = "s of audio"
BACKBONE = "model"
FRAME_RATE = 12.5
SIZES: dict[str, dict[str, Any]] = {
    "100m": {},
    "tiny": {
        "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32,
        "flow_head_config": {"hidden_size": 32, "num_hidden_layers": 2, "condition_dim": 64},
    },
}  # fmt: skip
FRAMES = {"tiny": 3}  # of a run; 75 (6 s of audio) where nothing else is said
PARTS = {
    "language model": ("model.forward",),
    "head": ("sample_latent",),
    "codec": ("audio_tokenizer.decode",),
}
RIVALS: dict[str, Any] = {}


def build(size: str, dtype: str, seed: int) -> Any:
    """`PocketTTSForConditionalGeneration` with random weights, and within it, as
    ``audio_tokenizer``, the model that decodes its latents."""
    from transformers import (
        PocketTTSAudioTokenizerConfig,
        PocketTTSAudioTokenizerModel,
        PocketTTSConfig,
        PocketTTSForConditionalGeneration,
    )

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PocketTTSForConditionalGeneration(PocketTTSConfig(**SIZES[size]))
        model.audio_tokenizer = PocketTTSAudioTokenizerModel(PocketTTSAudioTokenizerConfig())
    return model.to(getattr(torch, dtype)).eval().requires_grad_(False)


def generate(model: Any, size: str, seed: int) -> dict[str, Tensor]:
    """A run of `generate` and `decode`: the latents `[frames, d]` and the audio `[samples]`."""
    torch.manual_seed(seed)
    prompt = torch.randint(10, 100, (1, 40))
    prompt[0, -1] = model.config.audio_bos_token_id
    with torch.no_grad():
        out = model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=True,
            max_new_tokens=FRAMES.get(size, 75), eos_threshold=1e9, return_dict_in_generate=True,
        )  # fmt: skip
        audio = model.audio_tokenizer.decode(out.audio_latents)
    return {
        "latents": out.audio_latents[0],
        "audio": getattr(audio, "audio_values", audio).flatten(),
    }


def amount(size: str) -> float:
    """Seconds of audio of a run."""
    return FRAMES.get(size, 75) / FRAME_RATE
