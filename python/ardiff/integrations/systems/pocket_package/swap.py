"""Kyutai's package pocket-tts (4.0): parts of a `TTSModel`, replaced on its own modules.

The package's loop, threads, random numbers and state stay what they are: a state that the stock
model made, such as an exported voice, continues here, and one made here continues there.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from ..swaps import Choices, Swap, left, why_not
from .codec import (
    PackageDecoder,
    PackageUpsample,
    why_not_decoder,
    why_not_upsample,
)
from .head import PackageHead
from .transformer import PackageTransformer, why_not_transformer

__all__ = ["known", "swap_parts"]

# Methods that are replaced or called, with the names of their first parameters.
_METHODS = {
    "flow_lm": ("sequence", "text_embeddings"),
    "flow_lm.flow_net": ("c", "args"),
    "flow_lm.transformer": ("x", "model_state"),
    "mimi.upsample": ("x", "model_state"),
    "mimi.decoder_transformer.transformer": ("x", "model_state"),
    "mimi.decoder": ("z", "model_state"),
}


def known(model: Any) -> bool:
    """Whether `model` is a `TTSModel` of the package, without importing it."""
    return any(
        kind.__name__ == "TTSModel" and kind.__module__.partition(".")[0] == "pocket_tts"
        for kind in type(model).__mro__
    )


def swap_parts(model: Any, choices: Choices) -> list[Swap]:
    """Replaces the parts of a `TTSModel` that `choices` names.

    - ``head``: the flow head of each frame by the head engine, on the same noise.
    - ``linears``: those of the language model, packed.
    - ``attention``: of the language model, over the cache of the package's state.
    - ``codec``: the decoder from latents to samples: its transformer, and its convolutions as
      packed products.

    Float32 models on a CPU. With packed float32 weights all outputs are those of the stock model to
    rounding.

    Args:
        model: `pocket_tts.TTSModel`. Its parameters are used where they are; packed weights take
            memory beside them, and are made anew when parameters change.
        choices: what to replace, and the dtype of packed weights; None: float32. With int8 the
            convolutions of the codec are bfloat16, which is as fast.

    Returns:
        One `Swap` for each part asked for, two for the codec; those left say why.

    Raises:
        TypeError: another object.
    """
    if not known(model):
        raise TypeError(
            f"expected a TTSModel of the package pocket-tts, got {type(model).__name__}; unwrap it "
            "if something wraps it"
        )
    swaps: list[Swap] = []
    if "head" in choices.parts:
        swaps.append(_swap_head(model, choices))
    wanted = [part for part in ("linears", "attention") if part in choices.parts]
    if wanted:
        swaps += _swap_backbone(model, choices, wanted)
    if "codec" in choices.parts:
        swaps += [_swap_codec_transformer(model, choices), _swap_convolutions(model, choices)]
    return swaps


def _other_forward(model: Any, *paths: str) -> str:
    """Why a module's forward is not the one known; empty if all are."""
    for path in paths:
        try:
            module = model.get_submodule(path)
        except AttributeError:
            return f"the model has no {path}, expected one as pocket-tts 4.0 has it"
        found = tuple(inspect.signature(type(module).forward).parameters)[1:]
        expected = _METHODS[path]
        if found[: len(expected)] != expected:
            takes, wants = ", ".join(found), ", ".join(expected)
            return f"{type(module).__name__}.forward takes {takes}; expected {wants} (4.0)"
    return ""


def _swap_head(model: Any, choices: Choices) -> Swap:
    flow_lm = model.flow_lm
    head = flow_lm.flow_net
    before = f"{type(head).__name__}, {flow_lm.flow_type}"
    reason = _other_forward(model, "flow_lm", "flow_lm.flow_net") or why_not(
        head, [m for m in head.modules() if _is_linear(m)]
    )
    if "forward" in vars(flow_lm):
        reason = "the forward of the FlowLMModel was replaced by something else"
    if not reason and not next(head.parameters()).is_cpu:
        reason = "it is not on a CPU"
    if reason:
        return left("head", before, reason, [head])
    try:
        ours = PackageHead(flow_lm, choices)
    except (ValueError, RuntimeError) as error:
        return left("head", before, str(error), [head])
    swap = Swap("head", before, f"head_step, {ours.head.weights}", modules=[head])
    swap.memory_bytes = ours.memory_bytes
    swap.set(head, "forward", ours.forward)
    swap.set(flow_lm, "forward", ours.forward_language_model)
    return swap


def _is_linear(module: nn.Module) -> bool:
    """A linear layer, or what a quantisation put in its place."""
    return "Linear" in type(module).__name__ or isinstance(module, nn.Linear)


def _swap_backbone(model: Any, choices: Choices, wanted: list[str]) -> list[Swap]:
    module = model.flow_lm.transformer
    before = {
        "linears": f"{len(module.layers)} {type(module.layers[0]).__name__}, 4 Linear each",
        "attention": "scaled_dot_product_attention with a mask",
    }
    after = {
        "linears": f"packed_linear, {choices.weights or 'float32'}",
        "attention": "kv_attention over the state's cache",
    }
    reason = _other_forward(model, "flow_lm.transformer") or why_not_transformer(module)
    if reason:
        return [left(part, before[part], reason, [module]) for part in wanted]
    ours = PackageTransformer(
        module, choices, linears="linears" in wanted, attention="attention" in wanted
    )
    swaps = [Swap(part, before[part], after[part]) for part in wanted]
    swaps[0].modules, swaps[0].memory_bytes = [module], ours.memory_bytes
    swaps[0].set(module, "forward", ours.forward)
    return swaps


def _swap_codec_transformer(model: Any, choices: Choices) -> Swap:
    path = "mimi.decoder_transformer.transformer"
    reason = _other_forward(model, path)
    if reason:
        return left("codec", "the codec's transformer", reason)
    module = model.get_submodule(path)
    before = f"{len(module.layers)} {type(module.layers[0]).__name__} of the codec"
    reason = why_not_transformer(module)
    if reason:
        return left("codec", before, reason, [module])
    ours = PackageTransformer(module, choices, linears=True, attention=True)
    after = f"packed_linear, {choices.weights or 'float32'}, kv_attention"
    swap = Swap("codec", before, after, modules=[module], memory_bytes=ours.memory_bytes)
    swap.set(module, "forward", ours.forward)
    return swap


def _swap_convolutions(model: Any, choices: Choices) -> Swap:
    before = "ConvTrUpsample1d, SEANetDecoder"
    reason = _other_forward(model, "mimi.upsample", "mimi.decoder")
    if reason:
        return left("codec", before, reason)
    upsample, decoder = model.mimi.upsample, model.mimi.decoder
    reason = why_not_upsample(upsample) or why_not_decoder(decoder)
    if reason:
        return left("codec", before, reason, [upsample, decoder])
    weights = "bfloat16" if choices.weights == "int8" else choices.weights
    ours, up = PackageDecoder(decoder, weights), PackageUpsample(upsample)
    after = f"products with windows of steps, {weights or 'float32'}"
    swap = Swap("codec", before, after, modules=[upsample, decoder])
    swap.memory_bytes = ours.memory_bytes
    swap.set(upsample, "forward", up.forward)
    swap.set(decoder, "forward", ours.forward)
    return swap
