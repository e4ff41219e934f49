"""Which implementation serves an op on a device, chosen at import and forcible by name.

Forcing is a matter of context (`contextvars`): of the thread or coroutine that forces. The choice
falls inside an op, at every call, so eager calls, compiled graphs and `opcheck` all meet the same
implementation; the registration with the dispatcher never changes. Python kernels choose by
`_choose`. A compiled kernel serves without asking until a context of the process forces another
backend; then it asks `_serves`, and leaves the call to the op's twin in the namespace
`ardiff_choice` (`csrc/torch/choice.h`).
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator

import torch

from . import library, load
from .flat import on_rows

BACKENDS = ("reference", "cpu", "triton", "cuda")
_PREFERENCE = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}
_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
_OPS = f"{__package__.rpartition('.')[0]}.ops"


def unusable(op: str, name: str, device: str) -> str:
    """Why backend `name` cannot serve `op` on `device` ("cpu" or "cuda"); empty if it can."""
    if device == "cuda" and not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA or ROCm device"
    if name == "reference":
        return ""
    if name == "cpu":
        return _compiled(op, name, load.CPU, device)
    if name == "cuda":
        return _compiled(op, name, load.CUDA, device)
    if name == "triton":
        return _triton_unusable(op, device)
    raise ValueError(f"unknown backend {name!r}: expected one of {', '.join(BACKENDS)}")


def _compiled(op: str, name: str, library: load.Library, device: str) -> str:
    if device != name:
        return f"it serves {name} tensors only"
    if not library.loaded:
        return library.reason
    if _has_kernel(op, device):
        return ""
    return _parts_unusable(op, name, device, f"{library.path.name} has no kernel for {op}")


@functools.cache
def _has_kernel(op: str, device: str) -> bool:
    """Whether a compiled library registered a kernel; asked first before Python registers any."""
    qualified = f"{library.NAMESPACE}::{op}"
    return torch._C._dispatch_has_kernel_for_dispatch_key(qualified, _KEYS[device])


def _parts_unusable(op: str, name: str, device: str, alone: str) -> str:
    """Why the reference of `op` cannot run on backend `name`; `alone` if it calls no other ops."""
    reasons = [unusable(part, name, device) for part in library.PARTS.get(op, ())]
    return next(filter(None, reasons), "") if reasons else alone


def _triton_unusable(op: str, device: str) -> str:
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"triton cannot be imported: {error}"
    if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "triton serves cpu tensors only under TRITON_INTERPRET=1, set before import"
    if _implementation(op, "triton"):
        return ""
    return _parts_unusable(op, "triton", device, f"{op} has no Triton kernel")


@functools.cache
def _function(op: str, name: str, device: str) -> Callable:
    """What serves `op` on backend `name`."""
    reason = unusable(op, name, device)
    if reason:
        return _refusal(op, name, device, reason)
    if name == device and _has_kernel(op, device):
        return getattr(getattr(torch.ops, library.NAMESPACE), op).default
    return _implementation(op, name) or _implementation(op, "reference")


@functools.cache
def _implementation(op: str, name: str) -> Callable | None:
    """The Python function of a backend for an op, behind the op's argument check."""
    folder = op.removesuffix("_")
    module_name = f"{_OPS}.{folder}.{name}"
    if importlib.util.find_spec(module_name) is None:
        return None
    function = getattr(importlib.import_module(module_name), op)
    check = library.CHECKS[op]
    if op in library.ROWWISE:
        function = on_rows(function)

    def checked(*args, **kwargs):
        check(*args, **kwargs)
        return function(*args, **kwargs)

    return checked


@functools.cache
def reference_function(op: str) -> Callable:
    """The reference of an op without its argument check: it takes float64 state too."""
    return getattr(importlib.import_module(f"{_OPS}.{op}.reference"), op)


def _refusal(op: str, name: str, device: str, reason: str) -> Callable:
    def refuse(*args, **kwargs):
        raise RuntimeError(
            f"{op}: backend {name!r} was forced and cannot serve {device} tensors: {reason}"
        )

    return refuse


def _serving(op: str, device: str) -> str | None:
    return forced_backend() or default_backend(op, device)


def _serves(op: str, device: str) -> bool:
    """Whether the compiled kernel of `op` for `device` is to serve in this context."""
    return _serving(op, device) == device


def _choose(op: str, device: str) -> Callable:
    def chosen(*args, **kwargs):
        return _function(op, _serving(op, device), device)(*args, **kwargs)

    return chosen


def _kept(function: Callable) -> Callable:
    """`function`, whose error is kept, since it cannot pass through the C++ that calls it."""

    def call(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            library.keep_failure(error)
            raise

    return call


def _register() -> torch.library.Library:
    library.CHOICE.define("serves(str op, str device) -> bool")
    library.CHOICE.define("failure() -> str")
    library.CHOICE.impl("serves", _serves, "CompositeExplicitAutograd")
    library.CHOICE.impl("failure", library.failure_message, "CompositeExplicitAutograd")
    registered = torch.library.Library(library.NAMESPACE, "IMPL")
    for op in library.CHECKS:
        for device, key in _KEYS.items():
            if _has_kernel(op, device):
                library.CHOICE.impl(op, _kept(_choose(op, device)), key)
            elif default_backend(op, device):
                registered.impl(op, _choose(op, device), key)
    return registered


@functools.cache
def default_backend(op: str, device: str) -> str | None:
    """The backend that serves `op` on `device` when none is forced; None if none can."""
    return next((n for n in _PREFERENCE[device] if not unusable(op, n, device)), None)


class _Forced:
    """A backend from the begin to the end of one `with backend(name)`."""

    def __init__(self, name: str) -> None:
        self.name, self.open = name, True


# The backends that this context forces, the innermost last. Tasks and threads to which the context
# is copied see it too, and there also it ends with its `with`.
_forced: contextvars.ContextVar[tuple[_Forced, ...]] = contextvars.ContextVar("forced", default=())
_of_process: str | None = None


def _tell_libraries(name: str, contexts: int) -> None:
    """Count `contexts` more (or fewer) that force `name` in the libraries of other backends."""
    for backend_of, compiled in (("cpu", load.CPU), ("cuda", load.CUDA)):
        if compiled.loaded and backend_of != name:
            compiled.count_forcing(contexts)


@contextlib.contextmanager
def force(name: str) -> Iterator[None]:
    """:func:`backend` for a name that has been found usable."""
    own = _Forced(name)
    _tell_libraries(name, 1)
    _forced.set((*_forced.get(), own))
    try:
        yield
    finally:
        own.open = False
        _forced.set(tuple(f for f in _forced.get() if f.open))
        _tell_libraries(name, -1)


def _require_usable(name: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}: expected one of {', '.join(BACKENDS)}")
    reasons = {d: [r for op in library.CHECKS if (r := unusable(op, name, d))] for d in _KEYS}
    if all(reasons.values()):
        why = "; ".join(f"{device}: {found[0]}" for device, found in reasons.items())
        raise RuntimeError(f"backend {name!r} cannot serve here ({why})")


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Force every op onto one backend: `with ardiff_kernels.backend("reference"): ...`.

    It holds in the context that enters it (`contextvars`): for this thread or coroutine, and for
    tasks begun inside, until it is left. Other threads keep their own choice, those started inside
    too; ``contextvars.copy_context().run`` takes it to one. The backward pass of a forward pass
    inside runs on the same backend wherever it is called, except of a compiled function, which
    takes that of the context of its backward pass.

    Args:
        name: reference, cpu, triton or cuda.

    Raises:
        ValueError: an unknown name.
        RuntimeError: the backend can serve no device here; the message says why. An op called on a
            device that the forced backend cannot serve raises as well.
    """
    _require_usable(name)
    with force(name):
        yield


def forced_backend() -> str | None:
    """The backend that this context forces every op onto; None where each takes the best."""
    return next((f.name for f in reversed(_forced.get()) if f.open), _of_process)


def chosen_backend(op: str, device: str) -> str | None:
    """The backend that an op runs on for tensors of `device` ("cpu" or "cuda"); None if it cannot.

    An op without a kernel on a backend, whose `parts` (the ops that its reference calls) all have
    one, counts as available on that backend.
    """
    name = _serving(op, device)
    return None if name is None or unusable(op, name, device) else name


def status() -> list[dict[str, str]]:
    """One row per op, device and backend: op, device, backend, chosen ("yes"/""), reason."""
    rows = []
    for op in library.CHECKS:
        for device, names in _PREFERENCE.items():
            chosen = _serving(op, device)
            for name in dict.fromkeys((*names, *BACKENDS)):
                reason = unusable(op, name, device)
                mark = "yes" if name == chosen and not reason else ""
                row = {"op": op, "device": device, "backend": name, "chosen": mark}
                rows.append({**row, "reason": reason})
    return rows


def initialise() -> None:
    """Register the ops, and force the backend that ARDIFF_BACKEND names, if any, in the process."""
    global _registered, _of_process
    _registered = _register()
    name = os.environ.get("ARDIFF_BACKEND")
    if name:
        _require_usable(name)
        _of_process = name
        _tell_libraries(name, 1)
