"""Schemas and fakes of the ops, in the torch library namespace `ardiff`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

NAMESPACE = "ardiff"
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")

CHECKS: dict[str, Callable[..., None]] = {}
OPTIONS: dict[str, dict[str, Any]] = {}  # of each op: its optional arguments and their defaults
PARTS: dict[str, tuple[str, ...]] = {}
ROWWISE: set[str] = set()  # ops whose Python backends are given rows [B, d] for [B, ...]


def define(
    schema: str,
    check: Callable[..., None],
    fake: Callable | None = None,
    parts: tuple[str, ...] = (),
    rowwise: bool = False,
) -> None:
    """Define an op, its argument check and its fake (None for an in-place op: no results).

    The check also guards the fake, so that a mistake is reported while tracing. An op whose
    reference calls other ops, its `parts`, is served by every backend that serves them. A `rowwise`
    op takes tensors `[B, ...]` with contiguous rows in place of `[B, d]`; its first is the state.
    """
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    CHECKS[name] = check
    arguments = getattr(getattr(torch.ops, NAMESPACE), name).default._schema.arguments
    OPTIONS[name] = {a.name: a.default_value for a in arguments if a.has_default_value()}
    if parts:
        PARTS[name] = parts
    if rowwise:
        ROWWISE.add(name)

    def checked_fake(*args, **kwargs):
        check(*args, **kwargs)
        return None if fake is None else fake(*args, **kwargs)

    torch.library.register_fake(f"{NAMESPACE}::{name}", checked_fake, lib=_LIBRARY)


def operator(
    check: Callable[..., None],
    fake: Callable | None = None,
    written: Sequence[str] = (),
    options_of: Callable | None = None,
    rowwise: bool = False,
) -> Callable[[Callable], Callable]:
    """Make an op of a function that has no body: its signature becomes the schema, where each
    argument stands once, and a call of it a call of the op. Ints are plain ones, not symbolic.

    Args:
        check, fake, rowwise: as of :func:`define`.
        written: arguments that the op changes in place.
        options_of: a function whose keyword arguments stand for the `**options` of this one.
    """

    def make(function: Callable) -> Callable:
        name = function.__name__
        signature = inspect.signature(function, eval_str=True)
        if options_of is not None:
            signature = _with_options(signature, inspect.signature(options_of, eval_str=True))
        function.__signature__ = signature
        fields = getattr(signature.return_annotation, "_fields", None)
        define(name + _schema(signature, written), check, fake, rowwise=rowwise)
        overload = getattr(getattr(torch.ops, NAMESPACE), name).default

        @functools.wraps(function)
        def call(*args, **options):
            return overload(*args, **options)

        @functools.wraps(function)
        def call_named(*args, **options):
            return signature.return_annotation(*overload(*args, **options))

        return call_named if fields else call

    return make


def _with_options(signature: inspect.Signature, source: inspect.Signature) -> inspect.Signature:
    """`signature` with the keyword arguments of `source` in place of its `**options`."""
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    more = [p for p in source.parameters.values() if p.kind is p.KEYWORD_ONLY]
    split = next((i for i, p in enumerate(own) if p.kind is p.KEYWORD_ONLY), len(own))
    return signature.replace(parameters=[*own[:split], *more, *own[split:]])


def _schema(signature: inspect.Signature, written: Sequence[str]) -> str:
    fields = getattr(signature.return_annotation, "_fields", None)
    if fields:
        signature = signature.replace(return_annotation=tuple[(Tensor,) * len(fields)])

    def prototype() -> None: ...

    prototype.__signature__ = signature
    return torch.library.infer_schema(prototype, mutates_args=written).replace("SymInt", "int")


def options(op: str, given: Mapping[str, Any]) -> SimpleNamespace:
    """Every option of an op by its name: those that are given, the defaults of the others.

    Raises:
        TypeError: an option that the op has not.
    """
    known = OPTIONS[op]
    unknown = given.keys() - known.keys()
    if unknown:
        raise TypeError(f"{op} has no option {sorted(unknown)[0]!r}: expected {', '.join(known)}")
    return SimpleNamespace(**{**known, **given})


def implement_autograd(name: str, kernel: Callable) -> None:
    """Register `kernel(keyset, *args, **kwargs)` at an op's Autograd key, for every device."""
    _LIBRARY.impl(name, kernel, "Autograd", with_keyset=True)
