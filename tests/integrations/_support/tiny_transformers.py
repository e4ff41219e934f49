"""Random VibeVoice and Pocket-TTS models small enough for any test, and generations with them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor
from transformers import (
    LogitsProcessor,
    PocketTTSConfig,
    PocketTTSForConditionalGeneration,
    VibeVoiceConfig,
    VibeVoiceForConditionalGeneration,
)

from tests._support.small_models import randomise

AUDIO, END = 4, 1  # token ids


def vibevoice(head_dim: int = 8, **head) -> VibeVoiceForConditionalGeneration:
    """Width 32, latents of 8, 4 audio samples a latent, attention heads of `head_dim` channels."""
    sizes = {"num_filters": 4, "downsampling_ratios": [2, 2], "depths": [1, 1, 1]}
    text = {
        "model_type": "qwen2", "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
        "head_dim": head_dim,
    }  # fmt: skip
    tokenizer = "vibevoice_acoustic_tokenizer"
    config = VibeVoiceConfig(
        text_config=text,
        audio_config={"model_type": tokenizer, "hidden_size": 8, **sizes},
        semantic_model_config={"model_type": f"{tokenizer}_encoder", "hidden_size": 6, **sizes},
        diffusion_head_config={"intermediate_size": 96, "num_hidden_layers": 2, **head},
        pad_token_id=0, eos_token_id=END, audio_bos_token_id=2, audio_eos_token_id=3,
        audio_token_id=AUDIO,
    )  # fmt: skip
    return randomise(VibeVoiceForConditionalGeneration(config)).eval()


class Script(LogitsProcessor):
    """Row i says `frames[i]` audio tokens and ends."""

    def __init__(self, frames: Sequence[int], prompt: int) -> None:
        self.frames, self.prompt = frames, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        said = input_ids.shape[1] - self.prompt
        scores = torch.full_like(scores, -1e9)
        for row, frames in enumerate(self.frames):
            scores[row, AUDIO if said < frames else END] = 0
        return scores


@contextmanager
def recorded(model):
    """A list of (latents `[N, 1, d]`, which samples they belong to) of each token."""
    found: list[tuple[Tensor, Tensor]] = []
    stock = model._decode_audio_latent

    def decode(latent, mask, *args):
        found.append((latent.clone(), mask.clone()))
        return stock(latent, mask, *args)

    model._decode_audio_latent = decode
    yield found
    del model._decode_audio_latent


def speak(model, prompts: Sequence[Sequence[int]], frames: Sequence[int], **options):
    """The audio latents `[frames, d]` and audio of each prompt, all generated together."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    torch.manual_seed(options.pop("torch_seed", 1))
    options = {"guidance_scale": 1.3, "max_new_tokens": max(frames) + 1} | options
    with recorded(model) as found:
        audio = model.generate(
            input_ids=ids, attention_mask=mask, logits_processor=[Script(frames, longest)],
            **options,
        )  # fmt: skip
    latents = [[] for _ in prompts]
    for latent, rows in found:
        for row, own in zip(rows.nonzero()[:, 0].tolist(), latent, strict=True):
            latents[row].append(own)
    return [torch.cat(own) for own in latents], audio


def cosine(**options) -> DPMSolverMultistepScheduler:
    default = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
    return DPMSolverMultistepScheduler(**default | options)


def token(model, rows: int = 3, steps: int = 10, scale: float = 1.3, scheduler=None, seed=0):
    """One call of the loop itself, `[rows, d]`."""
    generator = torch.Generator().manual_seed(seed)
    c, u = torch.randn(2, rows, 32, generator=generator).to(model.dtype)
    torch.manual_seed(seed)
    with torch.no_grad():
        found = model._sample_audio_latent(c, u, scheduler or cosine(), steps, scale)
    assert found.shape == (rows, 1, 8) and found.dtype == model.dtype
    return found[:, 0]


def worst(found, expected) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))


def pocket_tts(flow_type: str = "lsd") -> PocketTTSForConditionalGeneration:
    """Width 32, latents of 8."""
    config = PocketTTSConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, latent_dim=8, audio_prompt_token_id=36, audio_latent_token_id=37,
        audio_prompt_bos_token_id=38, audio_bos_token_id=39, pad_token_id=0,
        flow_head_config={
            "hidden_size": 24, "num_hidden_layers": 2, "latent_dim": 8, "condition_dim": 32,
            "flow_type": flow_type,
        },
    )  # fmt: skip
    return randomise(PocketTTSForConditionalGeneration(config)).eval()


def say(model, prompts: Sequence[Sequence[int]], frames: int, **options) -> list[Tensor]:
    """The latents `[frames, d]` of each prompt, all generated together."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + [*p, 39] for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * (len(p) + 1) for p in prompts])
    torch.manual_seed(options.pop("torch_seed", 1))
    options = {"do_sample": True, "temperature": 0.7} | options
    return model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=frames, frames_after_eos=1,
        eos_threshold=1e9, **options,
    )  # fmt: skip
