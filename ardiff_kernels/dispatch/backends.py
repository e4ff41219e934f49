"""Which implementation serves an op on a device, chosen at import and forcible by name.

The dispatcher is the only source of truth: forcing a backend overrides its registrations, so
eager calls, `torch.compile` and `opcheck` all meet the same implementation.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import warnings
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


def _python(op: str, name: str, device: str) -> Callable | None:
    """What Python registers where backend `name` serves `op`; None where a library has."""
    if name in ("cpu", "cuda"):
        return None if _has_kernel(op, device) else _implementation(op, "reference")
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


def reference_function(op: str) -> Callable:
    """The reference of an op without its argument check: it takes float64 state too."""
    return getattr(importlib.import_module(f"{_OPS}.{op}.reference"), op)


def _refusal(op: str, name: str, device: str, reason: str) -> Callable:
    def refuse(*args, **kwargs):
        raise RuntimeError(
            f"{op}: backend {name!r} was forced and cannot serve {device} tensors: {reason}"
        )

    return refuse


def _register_defaults() -> torch.library.Library:
    registered = torch.library.Library(library.NAMESPACE, "IMPL")
    for op in library.CHECKS:
        for device in _KEYS:
            name = default_backend(op, device)
            function = _python(op, name, device) if name else None
            if function:
                registered.impl(op, function, _KEYS[device])
    return registered


def default_backend(op: str, device: str) -> str | None:
    """The backend that serves `op` on `device` when none is forced; None if none can."""
    return next((n for n in _PREFERENCE[device] if not unusable(op, n, device)), None)


_overrides: torch.library.Library | None = None
_forced: str | None = None


def _force(name: str | None) -> None:
    global _overrides, _forced
    if _overrides is not None:
        _overrides._destroy()
    _overrides, _forced = None, name
    if name is None:
        return
    registered = torch.library.Library(library.NAMESPACE, "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        for op in library.CHECKS:
            for device, key in _KEYS.items():
                reason = unusable(op, name, device)
                if reason:
                    function = _refusal(op, name, device, reason)
                else:
                    function = _python(op, name, device)
                if function:
                    registered.impl(op, function, key, allow_override=True)
    _overrides = registered


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

    Args:
        name: reference, cpu, triton or cuda.

    Raises:
        ValueError: an unknown name.
        RuntimeError: the backend can serve no device here; the message says why. An op called on a
            device that the forced backend cannot serve raises as well.
    """
    _require_usable(name)
    before = _forced
    _force(name)
    try:
        yield
    finally:
        _force(before)


def forced_backend() -> str | None:
    """The backend that every op is forced onto; None where each takes the best."""
    return _forced


def chosen_backend(op: str, device: str) -> str | None:
    """The backend that an op runs on for tensors of `device` ("cpu" or "cuda"); None if it cannot.

    An op without a kernel on a backend, whose `parts` (the ops that its reference calls) all have
    one, counts as available on that backend.
    """
    name = _forced or default_backend(op, device)
    return None if name is None or unusable(op, name, device) else name


def status() -> list[dict[str, str]]:
    """One row per op, device and backend: op, device, backend, chosen ("yes"/""), reason."""
    rows = []
    for op in library.CHECKS:
        for device, names in _PREFERENCE.items():
            chosen = _forced or default_backend(op, device)
            for name in dict.fromkeys((*names, *BACKENDS)):
                reason = unusable(op, name, device)
                mark = "yes" if name == chosen and not reason else ""
                row = {"op": op, "device": device, "backend": name, "chosen": mark}
                rows.append({**row, "reason": reason})
    return rows


def initialise() -> None:
    """Register the defaults, and the backend that ARDIFF_BACKEND names, if any."""
    global _defaults
    _defaults = _register_defaults()
    name = os.environ.get("ARDIFF_BACKEND")
    if name:
        _require_usable(name)
        _force(name)
