"""VibeVoice of transformers with its head loop accelerated, on random weights.

The diffusion head has the size of the 0.5B model's; the language model and the tokenizers are
small. With a released model only `random_model` and the prompt change: `from_pretrained` and its
processor.
"""

from __future__ import annotations

import time

import torch
from transformers import VibeVoiceConfig, VibeVoiceForConditionalGeneration

from ardiff.integrations.vibevoice import accelerate, restore

FRAMES = 2
PAD, EOS, BOS, END, AUDIO = range(5)  # token ids


def random_model(width: int = 896) -> VibeVoiceForConditionalGeneration:
    tokenizer, sizes = "vibevoice_acoustic_tokenizer", {"num_filters": 4, "depths": [1, 1, 1]}
    sizes["downsampling_ratios"] = [4, 4]
    config = VibeVoiceConfig(
        text_config={
            "model_type": "qwen2", "hidden_size": width, "num_hidden_layers": 2, "vocab_size": 64,
            "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": width,
        },
        audio_config={"model_type": tokenizer, "hidden_size": 64, **sizes},
        semantic_model_config={"model_type": f"{tokenizer}_encoder", "hidden_size": 32, **sizes},
        diffusion_head_config={"intermediate_size": 3 * width},
        pad_token_id=PAD, eos_token_id=EOS, audio_bos_token_id=BOS, audio_eos_token_id=END,
        audio_token_id=AUDIO,
    )  # fmt: skip
    torch.manual_seed(0)
    return VibeVoiceForConditionalGeneration(config).eval()


def speak(model: VibeVoiceForConditionalGeneration) -> tuple[torch.Tensor, float]:
    """Audio of one prompt, and seconds."""
    prompt = torch.tensor([[10, 11, 12, BOS]])
    torch.manual_seed(1)
    start = time.perf_counter()
    (audio,) = model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=FRAMES,
        guidance_scale=1.3, num_diffusion_steps=10, suppress_tokens=[EOS, BOS, END],
    )  # fmt: skip
    return audio, time.perf_counter() - start


def main() -> None:
    model = random_model()
    expected, theirs = speak(model)
    accelerate(model)
    speak(model)
    audio, ours = speak(model)
    restore(model)
    difference = float((audio - expected).abs().max() / expected.abs().max())
    print(f"{FRAMES} audio tokens, {tuple(audio.shape)} samples")
    print(f"stock {theirs:.2f} s; accelerated {ours:.2f} s, {theirs / ours:.1f} times as fast")
    print(f"largest difference of the audio {difference:.1e} of its peak, on the same noise")
    assert difference < 1e-3

    handle = accelerate(model, seed=7, sample_ids=[42])
    once, _ = speak(model)
    again, _ = speak(model)
    print(f"seed 7, sample {handle.sample_ids[0]}: repeated to the bit: {torch.equal(once, again)}")


if __name__ == "__main__":
    main()
