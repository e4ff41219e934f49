"""The language models within a model: their layers, their streams and their logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from ..packed_linears import PackedLinears, Place
from ..swaps import Choices, Swap, left, why_not
from .decoder_layers import KNOWN, MLP, FewRows
from .streams import Streams

_MODELS = ("Qwen2Model", "Qwen3Model", "LlamaModel", "MistralModel")


def swap_language_models(model: nn.Module, choices: Choices) -> list[Swap]:
    """Replaces the decoder layers of transformers within `model`; where all layers of a language
    model are ours, its streams and their logits are computed together."""
    swaps: list[Swap] = []
    try:
        for name, layers in _lists(model).items():
            new, made = _swap_layers(layers, choices)
            swaps += new
            parent = model.get_submodule(name.rpartition(".")[0])
            whole = made and all(own.packs and own.attends for own in made)
            if whole and type(parent).__name__ in _MODELS and "forward" not in vars(parent):
                _swap_streams(model, parent, made, new[0], choices)
    except BaseException:
        for swap in reversed(swaps):
            swap.restore()
        raise
    return swaps


def _lists(model: nn.Module) -> dict[str, list[nn.Module]]:
    """Decoder layers of known classes, by the name of the list that they are in."""
    found: dict[str, list[nn.Module]] = {}
    for name, module in model.named_modules():
        if type(module).__name__ in KNOWN and type(module).__module__.startswith("transformers."):
            found.setdefault(name.rpartition(".")[0], []).append(module)
    return found


def _swap_layers(layers: Sequence[nn.Module], choices: Choices) -> tuple[list[Swap], list[FewRows]]:
    """The swaps of ``linears`` and ``attention``, as they were asked for, and what stands in."""
    attn = layers[0].self_attn
    other = next(
        (a for a in (layer.self_attn for layer in layers) if not hasattr(a, "q_proj")), None
    )
    if other is not None:
        reason = f"a {type(other).__name__} stands where attention of the model is expected"
        found = [p for p in ("linears", "attention") if p in choices.parts]
        return [left(p, f"{len(layers)} {type(layers[0]).__name__}", reason) for p in found], []
    before = {
        "linears": f"{len(layers)} {type(layers[0]).__name__}, {_dtype(attn.q_proj)}",
        "attention": f"{attn.config._attn_implementation}, dynamic cache",
    }
    parts = [part for part in before if part in choices.parts]
    reasons = [why_not(layer, _linears_of(layer)) or _other_activation(layer) for layer in layers]
    if not parts or any(reasons):
        reason = next(filter(None, reasons), "")
        return [left(part, before[part], reason, layers) for part in parts], []
    other = next(filter(None, map(_other_attention, layers)), "")
    if other and "attention" in parts:
        choices = replace(choices, parts=choices.parts - {"attention"})
    made = [FewRows(layer, choices) for layer in layers]
    whole = Swap(
        "linears",
        before["linears"],
        f"packed_linear, {choices.weights or _dtype(attn.q_proj)}",
        modules=layers,
        methods=[(own, "step") for own in made],
        memory_bytes=sum(own.memory_bytes for own in made),
    )
    for layer, own in zip(layers, made, strict=True):
        whole.set(layer, "forward", own.forward)
    if "linears" not in parts:
        whole.part, whole.before, whole.after = "attention", before["attention"], ""
    swaps = [whole]
    methods = [(own, name) for own in made for name in ("_attend", "_stock_attention")]
    after = "kv_append, kv_attention, cache with room ahead"
    if "attention" in parts and other:
        swaps.append(left("attention", before["attention"], other))
    elif "linears" not in parts:
        whole.after, whole.modules, whole.methods = after, (), methods
    elif "attention" in parts:
        swaps.append(Swap("attention", before["attention"], after))
    if len(swaps) > 1:
        swaps[1].methods = methods
    return swaps, made


def _swap_streams(
    model: nn.Module, parent: nn.Module, made: list[FewRows], swap: Swap, choices: Choices
) -> None:
    head, logits = getattr(model, "lm_head", None), None
    if isinstance(head, nn.Linear) and not why_not(head, [head]):
        logits = PackedLinears([Place(model, "lm_head")], choices.weights)
        swap.memory_bytes += logits.memory_bytes
        swap.modules = [*swap.modules, head]
    streams = Streams(parent, made, logits)
    swap.after += "; streams in one pass" + (", logits too" if logits else "")
    swap.set(parent, "forward", streams.forward)
    if logits is not None:
        swap.set(head, "forward", streams.logits)


def _dtype(linear: nn.Module) -> str:
    weight = getattr(linear, "weight", None)
    return str(weight.dtype)[6:] if isinstance(weight, Tensor) else type(linear).__name__


def _linears_of(layer: nn.Module) -> list[nn.Module]:
    attn = [getattr(layer.self_attn, f"{n}_proj") for n in "qkvo"]
    return attn + [getattr(layer.mlp, name) for name in MLP[KNOWN[type(layer).__name__]]]


def _other_activation(layer: nn.Module) -> str:
    act = getattr(layer.mlp, "act_fn", None)
    if act is None or type(act).__name__ in ("SiLU", "SiLUActivation"):
        return ""
    return f"the activation is {type(act).__name__}, expected SiLU"


def _other_attention(layer: nn.Module) -> str:
    """Why the attention of a layer is none that we follow; empty if it is."""
    attn = layer.self_attn
    if getattr(attn, "sliding_window", None):
        return "it has a sliding window, and so has the cache"
    if attn.head_dim % 8 or not 32 <= attn.head_dim <= 256:
        return f"heads have {attn.head_dim} channels, expected a multiple of 8 from 32 to 256"
    return ""
