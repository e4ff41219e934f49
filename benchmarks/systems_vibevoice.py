"""VibeVoice of transformers with random weights at the sizes of the released models, for the suite
`systems`: from a prompt to audio, by `generate`.

The tokens are forced to be audio tokens, which random weights would not choose. The schedule has 10
steps of DPM-Solver++, guidance is 1.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor

from ._random_weights import materialised

UNIT = "s of audio"
BACKBONE = "model.language_model"
STEPS, GUIDANCE, RATE = 10, 1.3, 24_000
# width, layers, heads, key and value heads, feed-forward width, vocabulary
SIZES = {
    "0.5b": (896, 24, 14, 2, 4864, 151_936),
    "1.5b": (1536, 28, 12, 2, 8960, 151_936),
    "tiny": (64, 2, 2, 1, 96, 80),
}
PROMPT = {"tiny": 6}  # tokens; 200 where nothing else is said
TOKENS = {"tiny": 3}  # audio tokens of a run; 16 where nothing else is said


def config(size: str) -> Any:
    """Of a size; all but `tiny` have the published tokenizers."""
    from transformers import VibeVoiceConfig

    width, layers, heads, kv_heads, ffn, vocabulary = SIZES[size]
    text = {
        "model_type": "qwen2", "hidden_size": width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "intermediate_size": ffn,
        "vocab_size": vocabulary, "max_position_embeddings": 65_536, "tie_word_embeddings": True,
        "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
    }  # fmt: skip
    options: dict[str, Any] = {
        "diffusion_head_config": {"intermediate_size": 3 * width, "num_hidden_layers": 4}
    }
    if size == "tiny":
        codec = {"num_filters": 4, "downsampling_ratios": [2, 2], "depths": [1, 1, 1]}
        kind = "vibevoice_acoustic_tokenizer"
        options["audio_config"] = {"model_type": kind, "hidden_size": 8, **codec}
        semantic = {"model_type": f"{kind}_encoder", "hidden_size": 6, **codec}
        options["semantic_model_config"] = semantic
        names = ("pad_token_id", "eos_token_id", "audio_bos_token_id", "audio_eos_token_id")
        options |= {name: i for i, name in enumerate((*names, "audio_token_id"))}
    return VibeVoiceConfig(text_config=text, **options)


def build(size: str, dtype: str, seed: int) -> Any:
    """`VibeVoiceForConditionalGeneration` of a size with random weights."""
    from transformers import VibeVoiceForConditionalGeneration

    own = config(size)
    make = partial(VibeVoiceForConditionalGeneration, own)
    return materialised(make, getattr(torch, dtype), seed)


def generate(model: Any, size: str, seed: int) -> dict[str, Tensor]:
    """A run of `generate`: the latents `[tokens, d]` and the audio `[samples]` of its tokens."""
    from diffusers import DPMSolverMultistepScheduler

    own, tokens = model.config, TOKENS.get(size, 16)
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randint(10, 80, (1, PROMPT.get(size, 200)), generator=generator)
    prompt[:, -1] = own.audio_bos_token_id
    scheduler = DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"
    )
    torch.manual_seed(seed)
    with _recorded(model) as latents, torch.no_grad():
        audio = model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens,
            noise_scheduler=scheduler, num_diffusion_steps=STEPS, guidance_scale=GUIDANCE,
            logits_processor=[_always(own.audio_token_id)], do_sample=False,
        )  # fmt: skip
    return {"latents": torch.cat(latents).flatten(1), "audio": audio[0].flatten()}


def amount(size: str) -> float:
    """Seconds of audio of a run."""
    hop = 4 if size == "tiny" else 3200
    return TOKENS.get(size, 16) * hop / RATE


def methods(model: Any) -> list[tuple[str, Any, str]]:
    """Part, owner and name of each method whose time is that of a part."""
    inner = model.model
    return [
        ("language model", inner.language_model, "forward"),
        ("lm_head", model.lm_head, "forward"),
        ("head", model, "_sample_audio_latent"),
        ("audio decoder", inner.audio_tower, "decode"),
        ("semantic encoder", inner.semantic_tokenizer_encoder, "forward"),
    ]


def _always(token: int) -> Any:
    from transformers import LogitsProcessor

    class Always(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            scores = torch.full_like(scores, -1e9)
            scores[:, token] = 0
            return scores

    return Always()


@contextmanager
def _recorded(model: Any) -> Iterator[list[Tensor]]:
    """The latents `[1, 1, d]` that are decoded meanwhile."""
    latents: list[Tensor] = []
    decode = model._decode_audio_latent

    def own(latent: Tensor, *args: Any, **options: Any) -> Any:
        latents.append(latent.clone())
        return decode(latent, *args, **options)

    kept = vars(model).get("_decode_audio_latent")
    model._decode_audio_latent = own
    try:
        yield latents
    finally:
        del model._decode_audio_latent
        if kept is not None:
            model._decode_audio_latent = kept


def drop_third_pass(model: Any) -> None:
    """Leaves out the language model's third pass of each token, whose logits guide which token is
    next. `generate` adds it for any `guidance_scale` other than 1, which VibeVoice takes for its
    latents; the forced tokens stay what they are."""
    from transformers import UnbatchedClassifierFreeGuidanceLogitsProcessor as Third

    own = model._get_logits_processor

    def without(*args: Any, **options: Any) -> Any:
        processors = own(*args, **options)
        processors[:] = [each for each in processors if not isinstance(each, Third)]
        return processors

    model._get_logits_processor = without


def compile_decoding(model: Any) -> None:
    """Without the third pass, and the language model compiled where it is called for one token
    after others; the first two of a cache would each be a graph of their own."""
    drop_third_pass(model)
    language_model = model.model.language_model
    stock = language_model.forward
    compiled = torch.compile(stock, dynamic=True)

    @wraps(stock)
    def forward(*args: Any, **options: Any) -> Any:
        inputs, cache = options.get("inputs_embeds"), options.get("past_key_values")
        one = inputs is not None and inputs.shape[1] == 1 and cache.get_seq_length() > 1
        return (compiled if one else stock)(*args, **options)

    language_model.forward = forward


RIVALS = {"two-pass": drop_third_pass, "compile": compile_decoding}
