"""Random models of the package pocket-tts, small enough for any test."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from tests._support.small_models import randomise

_threads = torch.get_num_threads()
pytest.importorskip("pocket_tts")
from pocket_tts.models.tts_model import TTSModel  # noqa: E402
from pocket_tts.modules.stateful_module import increment_steps, init_states  # noqa: E402
from pocket_tts.utils.config import Config  # noqa: E402

torch.set_num_threads(_threads)  # the package sets one thread for the whole process

WORDS, FRAMES = 30, 6
TEXT = "w3 w4 w5 w6 w7"


def config(tmp_path: Path, *, flow: str = "lsd", residual_layers: int = 1, **transformer) -> Config:
    """Width 64 with heads of 32 channels, latents of 8, 96 samples a latent."""
    vocabulary = {"<unk>": 0} | {f"w{i}": i for i in range(1, WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    seanet = {
        "dimension": 64, "channels": 1, "n_filters": 8, "n_residual_layers": residual_layers,
        "ratios": [3, 2], "kernel_size": 7, "residual_kernel_size": 3, "last_kernel_size": 3,
        "dilation_base": 2, "pad_mode": "constant", "compress": 2,
    }  # fmt: skip
    codec = {
        "d_model": 64, "num_heads": 2, "num_layers": 2, "layer_scale": 0.3, "context": 20,
        "dim_feedforward": 96, "input_dimension": 64, "output_dimensions": [64],
    }  # fmt: skip
    backbone = {"d_model": 64, "hidden_scale": 2, "max_period": 100, "num_heads": 2}
    return Config(
        flow_lm={
            "dtype": "float32", "insert_bos_before_voice": True,
            "flow": {"dim": 32, "depth": 2, "type": flow},
            "transformer": backbone | {"num_layers": 2} | transformer,
            "lookup_table": {
                "dim": 64, "n_bins": WORDS, "tokenizer": "tokenizers", "tokenizer_path": str(path),
            },
        },
        mimi={
            "dtype": "float32", "sample_rate": 1200, "channels": 1, "frame_rate": 12.5,
            "inner_dim": 8, "outer_dim": 64, "seanet": seanet, "transformer": codec,
            "quantizer": {"dimension": 8, "output_dimension": 64},
        },
    )  # fmt: skip


def build(config: Config, steps: int = 1) -> Any:
    """A TTSModel that says `FRAMES` frames of any text."""
    model = TTSModel._from_pydantic_config_with_weights(config, 0.7, steps, None, 1e9)
    model = randomise(model)
    model._estimate_max_gen_len = _frames
    # Else a decoder that is behind takes several frames in one call, which rounds otherwise.
    model.max_decoder_frames_per_call = 1
    return model


def _frames(tokens: int) -> int:
    return FRAMES


def voice(model: Any, seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """The state after a prompt of 7 conditions."""
    state = init_states(model.flow_lm, batch_size=1, sequence_length=7)
    prompt = torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        model._run_flow_lm_and_increment_step(model_state=state, audio_conditioning=prompt)
    return state


def speak(model: Any, state: Any, seed: int = 1) -> Tensor:
    """The samples of `FRAMES` frames, by the package's own threads."""
    torch.manual_seed(seed)
    return model.generate_audio(state, TEXT)


def latents(model: Any, state: Any, frames: int, seed: int = 1, first: Tensor | None = None) -> Any:
    """Frames `[frames, 1, d]` one after another on a copy of the state, and that copy."""
    state = copy.deepcopy(state)
    model._expand_kv_cache(state, sequence_length=64)
    torch.manual_seed(seed)
    latent = torch.full((1, 1, 8), torch.nan) if first is None else first
    found = []
    with torch.no_grad():
        for _ in range(frames):
            latent, _ = model._run_flow_lm_and_increment_step(
                model_state=state, backbone_input_latents=latent
            )
            found.append(latent[0])
    return torch.stack(found), state


class Decoder:
    """The codec's decoder on one state, a call after another."""

    def __init__(self, model: Any, batch: int = 1) -> None:
        self.model = model
        self.state = init_states(model.mimi, batch_size=batch, sequence_length=2000)

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        """`[B, T, d]` -> `[B, 1, 96 T]`."""
        samples = self.model.mimi.decode_from_latent(latents, self.state)
        increment_steps(self.model.mimi, self.state, increment=16 * latents.shape[1])
        return samples
