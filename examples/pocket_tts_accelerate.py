"""Pocket-TTS of transformers with its flow head accelerated, on random weights.

The flow head has the size of the released one; the backbone is small. With a released model only
`random_model` and the prompt change: `from_pretrained` and its processor.
"""

from __future__ import annotations

import time

import torch
from transformers import PocketTTSConfig, PocketTTSForConditionalGeneration

from ardiff.integrations.pocket_tts import accelerate, restore

FRAMES = 10
VOICE, LATENT, VOICE_BOS, BOS = 60, 61, 62, 63  # token ids


def random_model() -> PocketTTSForConditionalGeneration:
    config = PocketTTSConfig(
        vocab_size=64, num_hidden_layers=1, intermediate_size=256, pad_token_id=0,
        audio_prompt_token_id=VOICE, audio_latent_token_id=LATENT,
        audio_prompt_bos_token_id=VOICE_BOS, audio_bos_token_id=BOS,
    )  # fmt: skip
    torch.manual_seed(0)
    return PocketTTSForConditionalGeneration(config).eval()


def speak(model: PocketTTSForConditionalGeneration, steps: int) -> tuple[torch.Tensor, float]:
    """Latents `[frames, 32]` of one prompt, and seconds."""
    prompt = torch.tensor([[10, 11, 12, BOS]])
    torch.manual_seed(1)
    start = time.perf_counter()
    (latents,) = model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=FRAMES,
        do_sample=True, temperature=0.7, num_flow_steps=steps, frames_after_eos=1,
        eos_threshold=1e9,
    )  # fmt: skip
    return latents, time.perf_counter() - start


def main() -> None:
    model = random_model()
    for steps in (1, 4):
        speak(model, steps)
        expected, theirs = speak(model, steps)
        accelerate(model)
        speak(model, steps)
        latents, ours = speak(model, steps)
        restore(model)
        difference = float((latents - expected).abs().max())
        print(
            f"{steps} flow steps: latents {tuple(latents.shape)}, largest difference "
            f"{difference:.1e}; stock {theirs:.2f} s, accelerated {ours:.2f} s, backbone included"
        )
        assert difference < 1e-3

    accelerate(model, seed=7, sample_ids=[42])
    once, again = speak(model, 1)[0], speak(model, 1)[0]
    print(f"seed 7, sample 42: repeated to the bit: {torch.equal(once, again)}")


if __name__ == "__main__":
    main()
