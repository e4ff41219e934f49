"""A stock causal LM as context encoder: with its own cache, with ours, and in the engine."""
# ruff: noqa: E501  (a case a line)

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import ardiff
from ardiff._files.checkpoints import CheckpointError
from ardiff.ar.engine import AREngine
from ardiff.ar.patch_model import PatchModel
from ardiff.ar.qwen2 import encoder_config, load_layers
from ardiff.ar.stock_context import StockContext, encoder_of
from ardiff.heads.mar import DiffusionHead
from ardiff.loop.run import run
from ardiff.noise import initial_state
from tests._support.small_models import randomise

transformers = pytest.importorskip("transformers")

B, T, WIDTH, D = 2, 19, 64, 3
SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 11,
    "max_position_embeddings": 64,
}
KINDS = {
    "qwen2": ("Qwen2", {"num_key_value_heads": 1}),
    "qwen2-window": (
        "Qwen2",
        {
            "num_key_value_heads": 2,
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 0,
        },
    ),
    "qwen3": ("Qwen3", {"num_key_value_heads": 1, "head_dim": 48}),
    "llama": (
        "Llama",
        {
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
    ),
    "llama-biases": ("Llama", {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}),
}


def stock(kind: str):
    """A random model whose biases and norms matter."""
    name, options = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, **options)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model.requires_grad_(False)


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_are_those_of_transformers(kind):
    """Full, with the stock cache and with ours, at every position."""
    model, x = stock(kind), tokens(B, T, WIDTH)
    expected = model.base_model(inputs_embeds=x, use_cache=False).last_hidden_state
    encoder, context = encoder_of(model), StockContext(model)
    cache = encoder.new_cache(B, T, block_size=4)
    parts = (x[:, :7], *x[:, 7:].split(1, 1))
    ours = torch.cat(
        [encoder.prefill(parts[0], cache), *(encoder.append(t, cache) for t in parts[1:])], 1
    )
    theirs = torch.cat([context.prefill(parts[0]), *(context.append(t) for t in parts[1:])], 1)
    for found in (encoder(x), ours, theirs):
        assert (found - expected).abs().max() <= 1e-5
    context.reset()
    assert (context.append(x) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "other",
    [{"sliding_window": 4}, {"rope_parameters": {"rope_type": "default", "rope_theta": 99.0}}],
)
def test_the_config_counts(other):
    """The control: models with the same weights and another window or rotary base differ."""
    model, x = stock("qwen2-window"), tokens(B, T, WIDTH)
    config, state = model.config.to_dict(), model.state_dict()
    found = load_layers({**config, **other}, state)(x)
    assert (found - load_layers(config, state)(x)).abs().max() > 1e-3


class OneBuffer(torch.nn.Module):
    """A model that answers in the same memory at every call, as a captured CUDA graph does."""

    def __init__(self, model) -> None:
        super().__init__()
        self.base_model, self.inner, self.buffer = self, model.base_model, torch.empty(B, 1, WIDTH)

    def forward(self, **inputs):
        out = self.inner(**inputs)
        out.last_hidden_state = self.buffer.copy_(out.last_hidden_state)
        return out


def test_hidden_states_outlive_the_next_call():
    model, x = stock("qwen2"), tokens(B, 4, WIDTH)
    found, expected = (
        torch.cat([context.append(token) for token in x.split(1, 1)], 1)
        for context in (StockContext(OneBuffer(model)), StockContext(model))
    )
    assert torch.equal(found, expected)


def test_patches_by_both_caches():
    """The engine over our encoder, and a plain loop over the stock cache, draw the same patches."""
    lm = stock("qwen2")
    model = PatchModel(
        encoder_of(lm),
        randomise(DiffusionHead(D, WIDTH, 16, 1)),
        D,
        path="vp-cosine",
        prediction="v_prediction",
    )
    randomise(model.embed)
    engine = AREngine(model, "ddpm", 4, rows=2, capacity=T)
    prompts = tokens(2, 6, WIDTH)
    for i in range(2):
        engine.submit(prompts[i], 3, sample_id=i, seed=0)
    while engine.step():
        pass
    found = {result.request: result.patches for result in engine.collect()}
    context, table = (
        StockContext(lm),
        ardiff.solver("ddpm", path="vp-cosine", prediction="v_prediction", steps=4),
    )
    context.prefill(prompts)
    made, token = [], model.start.detach().expand(2, 1, WIDTH)
    for k in range(3):
        state = context.append(token)[:, -1]
        key, stream = torch.tensor([0]), torch.arange(2) * 2**20 + k
        made.append(
            run(
                table,
                model.denoiser,
                initial_state(table, key, stream, D),
                key=key,
                stream=stream,
                condition=state,
            )
        )
        token = model.embed(made[-1])[:, None]
    for i in range(2):
        assert (torch.stack(made, 1)[i] - found[i]).abs().max() <= 1e-4


def test_weights_load_by_name_and_in_their_dtype():
    model = stock("qwen3")
    config, state = model.config.to_dict(), model.state_dict()
    assert any(name.startswith("model.") for name in state) and "lm_head.weight" in state
    encoder = load_layers(config, {n: t.bfloat16() for n, t in state.items()}, positions=32)
    assert encoder.norm.weight.dtype == torch.bfloat16 and encoder.cos.shape == (32, 24)
    assert encoder.cos.dtype == torch.float32 and not encoder.training


def without(name):
    return lambda config, state: (config, {n: t for n, t in state.items() if name not in n})


def extra(config, state):
    return config, {**state, "model.layers.2.input_layernorm.weight": torch.ones(WIDTH)}


def misshapen(config, state):
    return config, {**state, "model.norm.weight": torch.ones(3)}


def changed(**values):
    return lambda config, state: ({**config, **values}, state)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (
            without("layers.0"),
            CheckpointError,
            "state dict lacks layers.0.self_attn.q_proj.weight, so these are not Qwen2 or Llama layers",
        ),
        (
            without("layers.1.mlp.up"),
            CheckpointError,
            "state dict lacks model.layers.1.mlp.up_proj.weight",
        ),
        (without("model.norm"), CheckpointError, "state dict lacks model.norm.weight"),
        (
            extra,
            CheckpointError,
            "state dict has model.layers.2.input_layernorm.weight, which this encoder does not have",
        ),
        (
            misshapen,
            CheckpointError,
            "state dict: norm.weight must have shape [64] by the config, got [3]",
        ),
        (
            changed(num_hidden_layers=10**6),
            CheckpointError,
            "state dict holds 25 tensors of 248,064 bytes, too few for the config's 1000000 "
            "layers, 96 channels wide",
        ),
        (
            changed(max_position_embeddings=10**12),
            ValueError,
            "rotary tables for 1,000,000,000,000 positions would take 128,000,000,000,000 bytes, "
            "the layers 248,064: pass positions, the longest sequence that you will encode",
        ),
        (changed(hidden_act="gelu"), ValueError, "hidden_act must be silu, got 'gelu'"),
        (
            changed(rope_parameters={"rope_type": "yarn"}),
            ValueError,
            "rope_type must be default, got 'yarn': scaled tables are not made here",
        ),
        (
            changed(
                use_sliding_window=True,
                sliding_window=4,
                layer_types=["sliding_attention", "full_attention"],
            ),
            ValueError,
            "all layers must be of one type, got full_attention, sliding_attention",
        ),
    ],
)
def test_loading_errors(damage, error, message):
    model = stock("qwen2")
    with pytest.raises(error) as raised:
        load_layers(*damage(model.config.to_dict(), model.state_dict()))
    assert str(raised.value) == message


def test_transformers_is_imported_by_nobody_else():
    code = "import sys, ardiff, ardiff.ar.engine, ardiff.ar.stock_context; sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


WINDOWED = {
    "model_type": "qwen2", "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2,
    "intermediate_size": 96, "max_position_embeddings": 64, "sliding_window": 5,
    "use_sliding_window": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "granite"}, "model_type must be one of qwen2, qwen3, llama, mistral, got"),
        ({"max_window_layers": 1}, "all layers must be of one type"),
    ],
)
def test_configs_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        encoder_config({**WINDOWED, **changes}, set())


def test_windows_of_configs_without_layer_types():
    """As older configs say it: the first max_window_layers see everything."""
    for changes, window in (
        ({"max_window_layers": 0}, 5), ({"max_window_layers": 2}, 0), ({}, 0),
        ({"max_window_layers": 0, "use_sliding_window": False}, 0),
        ({"model_type": "mistral"}, 5),
    ):  # fmt: skip
        assert encoder_config({**WINDOWED, **changes}, set()).window == window
    without = {name: value for name, value in WINDOWED.items() if name != "use_sliding_window"}
    assert encoder_config({**without, "max_window_layers": 0}, set()).window == 0
