"""`ardiff.accelerate`: one entry for whole models."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from ...heads.packing import WEIGHTS
from .report import REPORT, Report
from .swaps import PARTS, Choices, Swap, left


@dataclass(frozen=True)
class System:
    """A kind of model that `accelerate` knows.

    Attributes:
        name: as the report shows it.
        module: of `ardiff.integrations`, whose `accelerate` replaces the head's loop.
        timed: methods of the owner of the head that a profile times.
        owner: of the head within a model, or None where the model is of another kind.
    """

    name: str
    module: str
    timed: tuple[str, ...]
    owner: Callable[[Any], Any]


def _class_names(model: Any) -> set[str]:
    return {f"{c.__module__.partition('.')[0]}.{c.__name__}" for c in type(model).__mro__}


def _of_class(name: str) -> Callable[[Any], Any]:
    return lambda model: model if name in _class_names(model) else None


def _with_attribute(name: str) -> Callable[[Any], Any]:
    """The module within a model that a head of that name hangs in, as its loop calls it."""

    def find(model: Any) -> Any:
        if not isinstance(model, nn.Module):
            return None
        for module in model.modules():
            head = getattr(module, name, None)
            if isinstance(getattr(head, "net", None), nn.Module) and hasattr(head, "sample"):
                return head
        return None

    return find


SYSTEMS = (
    System(
        "VibeVoice", "vibevoice", ("_sample_audio_latent",),
        _of_class("transformers.VibeVoiceForConditionalGeneration"),
    ),
    System(
        "Pocket-TTS", "pocket_tts", ("sample_latent",),
        _of_class("transformers.PocketTTSForConditionalGeneration"),
    ),
    System("MAR", "mar", ("sample",), _with_attribute("diffloss")),
    System("NextStep", "nextstep", ("sample",), _with_attribute("image_head")),
)  # fmt: skip


def accelerate(
    model: Any,
    *,
    parts: Collection[str] | None = None,
    weights: str | None = None,
    batch_invariant: bool = False,
    **head: Any,
) -> Report:
    """Makes a whole model generate faster, within the loops that it is used by.

    Knows VibeVoice and Pocket-TTS of transformers, a `TTSModel` of the package pocket-tts, MAR,
    models with an `image_head` of NextStep's form, and transformers causal LMs (Qwen2, Qwen3,
    Llama, Mistral) with such a head. Methods are replaced on the model's own modules; what does not
    fit stays as it is, and the report says why. The model's parameters are used where they are and
    followed when they change.

    - ``head``: the loop of the diffusion head by the head engine.
    - ``linears``: linear layers of the backbone at up to 64 rows by `ardiff_kernels` packed
      products, with the norms, activations and residuals around them; the streams of guidance that
      a loop asks for one after another in one pass over the weights.
    - ``attention``: of one new token per sample, over a KV cache that has room ahead.
    - ``codec``: the convolutional decoder and encoder of audio.

    Args:
        model: the model, on the device and in the dtype in which it is to run.
        parts: those to replace, of ``head``, ``linears``, ``attention``, ``codec``; None for all.
        weights: ``float32``, ``bfloat16`` or ``int8``, dtype of packed matrices; None for the
            dtype of each. Sums are float32.
        batch_invariant: a row's bits do not depend on the others.
        head: options of the head's loop, those of the system's own `accelerate` in
            `ardiff.integrations`: `solver`, `table` (learned tables by file name), `lookahead`,
            `seed`, `sample_ids`, ...

    Returns:
        The report: ``print(report)`` shows each part before and after, ``report.profile(run)`` adds
        the shares of time. The same one if the model has been accelerated with equal options.

    Raises:
        TypeError: a model of which nothing is known; an option that its head's loop does not take.
        ValueError: unknown parts or weights; options of the head that do not fit.
        RuntimeError: a model that is accelerated already, with other options.

    Example:
        >>> import ardiff
        >>> from transformers import Qwen2Config, Qwen2ForCausalLM
        >>> config = Qwen2Config(
        ...     hidden_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        ...     intermediate_size=96, vocab_size=16,
        ... )
        >>> model = Qwen2ForCausalLM(config).eval()
        >>> report = ardiff.accelerate(model)
        >>> report.replaced
        ['attention', 'linears']
        >>> ardiff.restore(model)
    """
    choices = _choices(parts, weights, batch_invariant)
    options = {"choices": choices, **head}
    present = vars(model).get(REPORT)
    if present is not None:
        if present.options == options:
            return present
        raise RuntimeError(
            f"accelerate: this {type(model).__name__} is accelerated already, with other options; "
            "call ardiff.restore(model) first"
        )
    system, owner = _find(model)
    swaps: list[Swap] = []
    try:
        handle = None
        if system is not None:
            own, handle = _swap_head(system, model, owner, choices, head)
            swaps.append(own)
        elif head:
            raise TypeError(
                f"accelerate: {min(head)!r} is an option of a diffusion head's loop, but this "
                f"{type(model).__name__} has no head that is known"
            )
        swaps += _swap_rest(model, system, choices)
        if not swaps and choices.parts == frozenset(PARTS):
            raise TypeError(
                f"accelerate: nothing of {type(model).__name__} is known; expected VibeVoice or "
                "Pocket-TTS of transformers, a TTSModel of pocket-tts, a model with MAR's diffloss "
                "or NextStep's image_head, or one with decoder layers of Qwen2, Qwen3, Llama or "
                "Mistral; unwrap it if something wraps it (peft: merge_and_unload)"
            )
    except BaseException:
        for swap in reversed(swaps):
            swap.restore()
        raise
    name = type(model).__name__ if system is None else system.name
    report = Report(model, name, swaps, handle, options)
    vars(model)[REPORT] = report
    return report


def restore(model: Any) -> None:
    """Undoes :func:`accelerate`; does nothing to a model that is not accelerated."""
    report = vars(model).get(REPORT)
    if report is not None:
        report.restore()


def _choices(parts: Collection[str] | None, weights: str | None, invariant: bool) -> Choices:
    chosen = frozenset(PARTS if parts is None else [parts] if isinstance(parts, str) else parts)
    unknown = sorted(chosen - set(PARTS))
    if unknown:
        raise ValueError(f"accelerate: parts must be of {', '.join(PARTS)}, got {unknown[0]!r}")
    if weights is not None and weights not in WEIGHTS:
        raise ValueError(
            f"accelerate: weights must be None or one of {', '.join(WEIGHTS)}, got {weights!r}"
        )
    return Choices(chosen, weights, bool(invariant))


def _find(model: Any) -> tuple[System | None, Any]:
    for system in SYSTEMS:
        owner = system.owner(model)
        if owner is not None:
            return system, owner
    return None, None


def _swap_head(
    system: System, model: Any, owner: Any, choices: Choices, head: dict[str, Any]
) -> tuple[Swap, Any]:
    integration = importlib.import_module(f"ardiff.integrations.{system.module}")
    takes = inspect.signature(integration.accelerate).parameters
    free = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    unknown = sorted(set(head) - set(takes))
    if unknown and not free:
        known = ", ".join(sorted(set(takes) - {"model", "weights", "batch_invariant"}))
        raise TypeError(
            f"accelerate: the head's loop of {system.name} takes no {unknown[0]!r}; it takes: "
            f"{known}"
        )
    methods = [(owner, name) for name in system.timed]
    before = f"{type(owner).__name__}.{system.timed[0]}"
    if "head" not in choices.parts:
        if head:
            raise ValueError(
                f"accelerate: {min(head)!r} needs the part head, which parts leaves out"
            )
        swap = left("head", before, "not asked for")
        swap.methods = methods
        return swap, None
    own = {"weights": choices.weights, "batch_invariant": choices.batch_invariant}
    try:
        handle = integration.accelerate(owner, **own, **head)
    except (ValueError, RuntimeError) as error:
        if head:
            raise
        swap = left("head", before, str(error))
        swap.methods = methods
        return swap, None
    packed = handle.head()
    swap = Swap("head", before, f"head_step, {packed.weights} weights", methods=methods)
    swap.memory_bytes = packed.memory_bytes
    swap.undo_with(partial(integration.restore, owner))
    return swap, handle


def _swap_rest(model: Any, system: System | None, choices: Choices) -> list[Swap]:
    if not isinstance(model, nn.Module):
        return []
    swaps: list[Swap] = []
    if system is not None and system.name == "MAR":
        from .mar.swap import swap_backbone

        swaps += swap_backbone(model, choices)
    names = {type(m).__module__.partition(".")[0] for m in model.modules()}
    if "transformers" in names:
        from .language.swap import swap_language_models

        swaps += swap_language_models(model, choices)
    if system is not None and system.name == "VibeVoice" and "codec" in choices.parts:
        from .vibevoice.swap import swap_codec

        swaps += swap_codec(model, choices)
    if "pocket_tts" in names:
        from .pocket_package.swap import known, swap_parts

        swaps += swap_parts(model, choices) if known(model) else []
    return swaps
