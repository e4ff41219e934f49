"""The package pocket-tts with random weights at the size of the released English model, for the
suite `systems`: from a text to audio, by its `generate_audio` on a voice of 5 s.

The package runs language model and codec in a thread each, both with one thread of PyTorch. It is
told never to end, so that a run has the same number of frames whatever the weights say.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

UNIT = "s of audio"
BACKBONE = "flow_lm.transformer"
RATE, FRAME_RATE = 24_000, 12.5
WORDS = 4000
# width, layers, heads, head width, head depth, codec width, codec filters
SIZES = {"english": (1024, 6, 16, 512, 6, 512, 64), "tiny": (64, 2, 2, 32, 2, 64, 8)}
FRAMES = {"tiny": 3}  # of a run; 75 (6 s of audio) where nothing else is said
PARTS = {
    "language model": ("flow_lm.transformer.forward",),
    "head": ("flow_lm.flow_net.forward",),
    "codec": ("mimi.decode_from_latent",),
}


def tokenizer(path: Path, words: int) -> None:
    """Writes a tokenizer of so many words, ``w1`` and so on."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"<unk>": 0} | {f"w{i}": i for i in range(1, words)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(path))


def config(size: str, path: Path) -> Any:
    """That of a size, with a tokenizer at `path`."""
    from pocket_tts.utils.config import Config

    width, layers, heads, head, depth, codec, filters = SIZES[size]
    seanet = {
        "dimension": codec, "channels": 1, "n_filters": filters, "n_residual_layers": 1,
        "ratios": [6, 5, 4], "kernel_size": 7, "residual_kernel_size": 3, "last_kernel_size": 3,
        "dilation_base": 2, "pad_mode": "constant", "compress": 2,
    }  # fmt: skip
    transformer = {
        "d_model": codec, "num_heads": max(2, codec // 64), "num_layers": 2, "layer_scale": 0.01,
        "context": 250, "dim_feedforward": 4 * codec, "input_dimension": codec,
        "output_dimensions": [codec],
    }  # fmt: skip
    backbone = {
        "d_model": width, "num_heads": heads, "num_layers": layers, "hidden_scale": 4,
        "max_period": 10_000,
    }  # fmt: skip
    table = {"dim": width, "n_bins": WORDS, "tokenizer": "tokenizers", "tokenizer_path": str(path)}
    return Config(
        flow_lm={
            "dtype": "float32", "insert_bos_before_voice": True, "lookup_table": table,
            "flow": {"dim": head, "depth": depth}, "transformer": backbone,
        },
        mimi={
            "dtype": "float32", "sample_rate": RATE, "channels": 1, "frame_rate": FRAME_RATE,
            "inner_dim": 32, "outer_dim": codec, "seanet": seanet, "transformer": transformer,
            "quantizer": {"dimension": 32, "output_dimension": codec},
        },
    )  # fmt: skip


def build(size: str, dtype: str, seed: int) -> Any:
    """A `TTSModel` of a size with random weights.

    Raises:
        ValueError: a dtype other than float32, which the package has no other than.
    """
    from pocket_tts.models.tts_model import TTSModel

    if dtype != "float32":
        raise ValueError(f"the package pocket-tts runs in float32 only, got {dtype}")
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(seed)
        path = Path(folder) / "tokenizer.json"
        tokenizer(path, WORDS)
        own = config(size, path)
        model = TTSModel._from_pydantic_config_with_weights(own, 0.3, 1, None, 1e9)
        torch.nn.init.normal_(model.flow_lm.speaker_proj_weight, std=0.05)
    model._estimate_max_gen_len = partial(_frames, FRAMES.get(size, 75))
    return model.eval().requires_grad_(False)


def _frames(frames: int, tokens: int) -> int:
    return frames


def generate(model: Any, size: str, seed: int) -> dict[str, Tensor]:
    """A run of `generate_audio`: the latents `[frames, d]` and the audio `[samples]`."""
    latents: list[Tensor] = []
    torch.manual_seed(seed)
    state = model.get_state_for_audio_prompt(0.1 * torch.randn(1, 5 * RATE))
    text = " ".join(f"w{i}" for i in range(10, 40))
    decode = model.mimi.decode_from_latent
    kept = vars(model.mimi).get("decode_from_latent")

    def recorded(latent: Tensor, *args: Any) -> Tensor:
        latents.append(latent[0].clone())
        return decode(latent, *args)

    model.mimi.decode_from_latent = recorded
    try:
        audio = model.generate_audio(state, text)
    finally:
        del model.mimi.decode_from_latent
        if kept is not None:
            model.mimi.decode_from_latent = kept
    return {"latents": torch.cat(latents), "audio": audio}


def amount(size: str) -> float:
    """Seconds of audio of a run."""
    return FRAMES.get(size, 75) / FRAME_RATE


def quantized(model: Any) -> None:
    """What ``load_model(quantize=True)`` does to a loaded model."""
    from pocket_tts.quantization import RECOMMENDED_CONFIG, apply_dynamic_int8

    apply_dynamic_int8(model.flow_lm, RECOMMENDED_CONFIG)


RIVALS = {"quantize": quantized}
