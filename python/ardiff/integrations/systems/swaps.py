"""What takes the place of a part of a model, and how it is undone.

A `Swap` names one part: some modules of one kind whose methods were replaced, or that were left as
they are for a reason. Methods are replaced on the modules themselves (their class stays untouched),
so that the modules, their parameters and their names in a state dict stay what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...heads.packing import hooked

PARTS = ("head", "linears", "attention", "codec")


class _ABSENT:
    """Stands for an attribute that an owner did not have; a class, so that copies are the same."""


@dataclass(frozen=True)
class Choices:
    """What the caller of `ardiff.accelerate` asked for.

    Attributes:
        parts: of `PARTS`, those to replace.
        weights: float32, bfloat16 or int8, of packed matrices; None for the dtype of each.
        batch_invariant: whether the bits of a row may not depend on the other rows.
    """

    parts: frozenset[str] = frozenset(PARTS)
    weights: str | None = None
    batch_invariant: bool = False


@dataclass(eq=False)
class Swap:
    """One part of a model, replaced or left.

    Attributes:
        part: one of `PARTS`.
        before: what the model has, such as ``28 Qwen2DecoderLayer, 7 Linear each``.
        after: what stands in its place; empty where it was left.
        reason: why it was left; empty where it was replaced.
        modules: whose `forward` a profile times for this part.
        methods: pairs of an object and the name of a method that it times too.
        memory_bytes: what the replacement holds beside the model.
    """

    part: str
    before: str
    after: str = ""
    reason: str = ""
    modules: Sequence[nn.Module] = ()
    methods: Sequence[tuple[Any, str]] = ()
    memory_bytes: int = 0
    _undo: list[Callable[[], Any]] = field(default_factory=list, repr=False)

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Sets an attribute of `owner` itself until :meth:`restore`."""
        self.undo_with(partial(_put_back, owner, name, vars(owner).get(name, _ABSENT)))
        vars(owner)[name] = value

    def undo_with(self, undo: Callable[[], Any]) -> None:
        """Has :meth:`restore` call `undo`: a function or a partial of one, which a deep copy of the
        model follows to the copy."""
        self._undo.append(undo)

    def restore(self) -> None:
        """Gives every owner its own attributes back, the last first, and lets go of what stood in
        their place."""
        while self._undo:
            self._undo.pop()()
        self.methods = ()


def _put_back(owner: Any, name: str, had: Any) -> None:
    if had is _ABSENT:
        vars(owner).pop(name, None)
    else:
        vars(owner)[name] = had


def left(part: str, before: str, reason: str, modules: Sequence[nn.Module] = ()) -> Swap:
    """A part that stays as it is."""
    return Swap(part, before, reason=reason, modules=modules)


def why_not(module: nn.Module, linears: Iterable[nn.Module]) -> str:
    """Why the modules within `module` cannot be passed by; empty if they can.

    Whoever replaces a module's `forward` calls the modules within it no more: hooks on them would
    not run, and what is no plain linear layer (LoRA, quantised) would not be heard.

    Args:
        module: whose `forward` is to be replaced. Hooks on itself still run.
        linears: those within it whose weights are to be packed.
    """
    if "forward" in vars(module):
        return f"the forward of a {type(module).__name__} was replaced by something else"
    if getattr(module, "_compiled_call_impl", None) is not None:
        return f"{type(module).__name__} is compiled"
    for name, inner in module.named_modules():
        if inner is module:
            continue
        compiled = getattr(inner, "_compiled_call_impl", None) is not None
        if compiled or isinstance(inner, torch._dynamo.eval_frame.OptimizedModule):
            return f"{name} is compiled"
        if hooked(inner) or "forward" in vars(inner):
            return f"{name} has hooks or a replaced forward, which would not be called"
    for linear in linears:
        if type(linear) is not nn.Linear:
            return f"a {type(linear).__name__} stands where a torch.nn.Linear is expected"
        weight = linear.weight
        if type(weight) not in (nn.Parameter, Tensor) or weight.is_meta:
            return f"a weight is a {type(weight).__name__} (quantised or offloaded)"
        if weight.dtype not in (torch.float32, torch.bfloat16):
            return f"weights are {str(weight.dtype)[6:]}, expected float32 or bfloat16"
    return ""
