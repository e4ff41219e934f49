"""Schemas and fakes of the ops, in the torch library namespace `ardiff`."""

from __future__ import annotations

import functools
import inspect
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

NAMESPACE = "ardiff"
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")
# What compiled kernels call where a context forces another backend (`backends`); the schemas are
# those of the ops.
CHOICE = torch.library.Library("ardiff_choice", "DEF")
_failure = threading.local()

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
) -> Callable:
    """Define an op, its argument check and its fake (None for an in-place op: no results); returns
    a function that calls it.

    The check also guards the fake, so that a mistake is reported while tracing. An op whose
    reference calls other ops, its `parts`, is served by every backend that serves them. A `rowwise`
    op takes tensors `[B, ...]` with contiguous rows in place of `[B, d]`; its first is the state.
    """
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    CHOICE.define(schema)
    overload = getattr(getattr(torch.ops, NAMESPACE), name).default
    arguments = overload._schema.arguments
    check = CHECKS[name] = _with_tensors(name, arguments, check)
    OPTIONS[name] = {a.name: a.default_value for a in arguments if a.has_default_value()}
    if parts:
        PARTS[name] = parts
    if rowwise:
        ROWWISE.add(name)

    written = [a.name for a in arguments if a.alias_info is not None]

    def checked_fake(*args, **kwargs):
        check(*args, **kwargs)
        given = dict(zip((a.name for a in arguments), args, strict=False)) | kwargs
        _refuse_views(name, {n: given[n] for n in written if given.get(n) is not None})
        return None if fake is None else fake(*args, **kwargs)

    torch.library.register_fake(f"{NAMESPACE}::{name}", checked_fake, lib=_LIBRARY)
    for key in ("Negative", "Conjugate"):
        _LIBRARY.impl(name, _resolved(name, overload), key)
    return _caller(overload)


def _refuse_views(name: str, written: Mapping[str, Tensor]) -> None:
    """Refuse to compile an op that writes two views of one tensor: where they come from different
    views of it, or sizes are dynamic, torch's functionalisation loses what is written to one."""
    for (one, a), (other, b) in itertools.combinations(written.items(), 2):
        if a.untyped_storage()._cdata == b.untyped_storage()._cdata:
            raise RuntimeError(
                f"{name}: {one} and {other} are views of one tensor, both written in place, which "
                f"torch.compile may compile wrongly; call {name.removesuffix('_')}, or clone one"
            )


def _with_tensors(name: str, arguments: Sequence[Any], check: Callable) -> Callable[..., None]:
    """`check` after a check that no tensor is None, which a schema lets pass."""
    tensors = [(i, a.name) for i, a in enumerate(arguments) if str(a.type) == "Tensor"]

    def whole(*args, **kwargs):
        for i, tensor in tensors:
            if (args[i] if i < len(args) else kwargs[tensor]) is None:
                raise RuntimeError(f"{name}: {tensor} must be a tensor, got None")
        check(*args, **kwargs)

    return whole


def _resolved(name: str, overload: Any) -> Callable:
    """The kernel for views that negate or conjugate when they are read, such as `.imag` of a
    conjugate: the op on copies, since the backends read memory as it is."""
    arguments = overload._schema.arguments
    written = {a.name for a in arguments if a.alias_info is not None}

    def resolve(argument: Any, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [resolve(argument, each) for each in value]
        if not isinstance(value, Tensor) or not (value.is_neg() or value.is_conj()):
            return value
        if argument.name in written:
            raise RuntimeError(
                f"{name}: {argument.name} is written in place but is a view that negates or "
                "conjugates its memory (as .imag of a conjugate); call .resolve_neg() or "
                ".resolve_conj() first"
            )
        return value.resolve_neg().resolve_conj()

    def kernel(*args, **kwargs):
        by_name = {a.name: a for a in arguments}
        args = [resolve(a, value) for a, value in zip(arguments, args, strict=False)]
        return overload(*args, **{n: resolve(by_name[n], value) for n, value in kwargs.items()})

    return kernel


def _caller(overload: Any) -> Callable:
    """A function that calls an op and raises what made it fail: C++ passes a message alone."""

    def call(*args, **options):
        if torch.compiler.is_compiling():
            return overload(*args, **options)
        try:
            return overload(*args, **options)
        except RuntimeError as error:
            cause = _cause(error)
            if cause is error:
                raise
            raise cause from None

    return call


def keep_failure(error: BaseException) -> None:
    """Keep the error of a Python backend that C++ called, for `_caller` and for C++'s message."""
    _failure.error = error


def failure_message() -> str:
    """What C++ says of the error that was kept."""
    error = _failure.error
    return str(error) if isinstance(error, RuntimeError) else f"{type(error).__name__}: {error}"


def _cause(error: RuntimeError) -> BaseException:
    kept = getattr(_failure, "error", None)
    if kept is not None and str(error).startswith(failure_message()):
        del _failure.error
        return kept
    if ": out of memory on cuda" in str(error):
        return torch.OutOfMemoryError(str(error))
    return error


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
        call = define(name + _schema(signature, written), check, fake, rowwise=rowwise)

        def call_named(*args, **options):
            return signature.return_annotation(*call(*args, **options))

        return functools.wraps(function)(call_named if fields else call)

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
