"""Weights of Qwen2, Qwen3 and Llama layers, by their names in the public checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .._files.checkpoints import CheckpointError, check_memory, check_tensors
from .encoder import CausalEncoder, EncoderConfig

_LAYER = "layers.{}."
_FUSED = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
}
_RENAMED = {
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "proj": "self_attn.o_proj",
    "mlp.down": "mlp.down_proj",
}
_HEAD_NORMS = {"q_norm": "self_attn.q_norm.weight", "k_norm": "self_attn.k_norm.weight"}
SMALL_TABLES = 2**28  # bytes of rotary tables that any checkpoint may have
MODEL_TYPES = ("qwen2", "qwen3", "llama", "mistral")
_NOT_LAYERS = ("embed_tokens.weight", "lm_head.weight", "rotary_emb.inv_freq")


def encoder_config(
    config: Mapping[str, Any], names: set[str], positions: int | None = None
) -> EncoderConfig:
    """The encoder that a checkpoint's `config.json` describes.

    Args:
        config: its content.
        names: of the checkpoint's tensors, without a prefix; they say which biases and norms exist.
        positions: length of the rotary tables; None for max_position_embeddings.

    Raises:
        ValueError: another type of model, activation or rotary scaling, layers with and without a
            window.
    """
    if config.get("model_type", "qwen2") not in MODEL_TYPES:
        raise ValueError(
            f"model_type must be one of {', '.join(MODEL_TYPES)}, got {config['model_type']!r}"
        )
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act must be silu, got {config['hidden_act']!r}")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(
            f"rope_type must be default, got {kind!r}: scaled tables are not made here"
        )
    heads, first = config["num_attention_heads"], _LAYER.format(0)
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    return EncoderConfig(
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        ffn=config["intermediate_size"],
        norm_eps=config.get("rms_norm_eps", 1e-6),
        positions=positions or config["max_position_embeddings"],
        rotary_base=float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
        rotary_dims=int(head_dim * rope.get("partial_rotary_factor", 1.0)),
        qkv_bias=f"{first}self_attn.q_proj.bias" in names,
        proj_bias=f"{first}self_attn.o_proj.bias" in names,
        mlp_bias=f"{first}mlp.down_proj.bias" in names,
        qk_norm=f"{first}{_HEAD_NORMS['q_norm']}" in names,
        window=_window(config),
    )


def _window(config: Mapping[str, Any]) -> int:
    qwen = str(config.get("model_type", "")).startswith("qwen")
    used = config.get("use_sliding_window", not qwen)
    window = config.get("sliding_window") if used else None
    if not window:
        return 0
    depth = config["num_hidden_layers"]
    whole = min(config.get("max_window_layers", 0 if not qwen else 28), depth) if qwen else 0
    kinds = set(
        config.get("layer_types")
        or ["full_attention"] * whole + ["sliding_attention"] * (depth - whole)
    )
    if len(kinds) > 1:
        raise ValueError(f"all layers must be of one type, got {', '.join(sorted(kinds))}")
    return window if kinds == {"sliding_attention"} else 0


def load_layers(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    positions: int | None = None,
    source: str = "state dict",
) -> CausalEncoder:
    """The transformer layers and last norm of a checkpoint as a `CausalEncoder`.

    Its input are token embeddings; embedding and output layers of the checkpoint are left out.

    Args:
        config: the content of its `config.json`.
        tensors: by name, with or without a prefix such as ``model.``.
        positions: as :func:`encoder_config`.
        source: named in errors.

    Returns:
        The encoder, in eval mode, without gradients, in the dtype and on the device of `tensors`.

    Raises:
        CheckpointError: missing, unexpected or misshapen tensors.
        ValueError: a config that the encoder cannot follow.
    """
    anchor = _LAYER.format(0) + "self_attn.q_proj.weight"
    found = [name for name in tensors if name.endswith(anchor)]
    if len(found) != 1:
        raise CheckpointError(f"{source} lacks {anchor}, so these are not Qwen2 or Llama layers")
    prefix, like = found[0].removesuffix(anchor), tensors[found[0]]
    own = {n.removeprefix(prefix): t for n, t in tensors.items() if not n.endswith(_NOT_LAYERS)}
    check_memory(own, source)
    made_for = encoder_config(config, set(own), positions)
    _check_sizes(made_for, own, source)
    with torch.device("meta"):
        encoder = CausalEncoder(made_for)
    made = {"norm.weight": own.pop("norm.weight", None)}
    for layer in range(encoder.config.depth):
        for name in encoder.blocks[layer].state_dict():
            parts = [_LAYER.format(layer) + part for part in _sources(name)]
            missing = [part for part in parts if part not in own]
            if missing:
                raise CheckpointError(f"{source} lacks {prefix}{missing[0]}")
            made[f"blocks.{layer}.{name}"] = torch.cat([own.pop(part) for part in parts])
    if own:
        raise CheckpointError(
            f"{source} has {prefix}{sorted(own)[0]}, which this encoder does not have"
        )
    if made["norm.weight"] is None:
        raise CheckpointError(f"{source} lacks {prefix}norm.weight")
    check_tensors(encoder, made, source)
    encoder = CausalEncoder(made_for)
    encoder.to(like).load_state_dict(made)
    return encoder.eval().requires_grad_(False)


def _check_sizes(config: EncoderConfig, tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuses what a config claims beyond its tensors, before an encoder of it is made."""
    stored = sum(t.nbytes for t in tensors.values())
    widest = max(config.width, config.ffn, config.heads * config.head_dim)
    if config.depth > len(tensors) or widest > stored:
        raise CheckpointError(
            f"{source} holds {len(tensors)} tensors of {stored:,} bytes, too few for the config's "
            f"{config.depth} layers, {widest} channels wide"
        )
    tables = 4 * config.positions * config.rotary_dims
    if tables > max(stored, SMALL_TABLES):
        raise ValueError(
            f"rotary tables for {config.positions:,} positions would take {tables:,} bytes, the "
            f"layers {stored:,}: pass positions, the longest sequence that you will encode"
        )


def _sources(name: str) -> list[str]:
    """The checkpoint's tensors that make a tensor of a `Block`."""
    if name in _HEAD_NORMS:
        return [_HEAD_NORMS[name]]
    layer, kind = name.rsplit(".", 1)
    return [f"{part}.{kind}" for part in _FUSED.get(layer, (_RENAMED.get(layer),))]
