"""What the capture of a loop in a CUDA graph and the models called in it tell one another.

A capture reads nothing back from the device, so that a run before it finds out what it needs
(:func:`rehearsal`). Its replays read tensors that a model prepared, such as packed weights, which
the model brings up to date before a replay (:func:`watch`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

Sets = tuple[list[int], list[int]]  # the set of each row, the first row of each set

_found: ContextVar[list[Sets] | None] = ContextVar("_found", default=None)


@contextmanager
def rehearsal() -> Iterator[None]:
    """Within it, rows that share modulations in a run share them in the capture that follows. So at
    every replay the same levels must be equal."""
    token = _found.set([])
    try:
        yield
    finally:
        _found.reset(token)


def rehearsed() -> list[Sets] | None:
    """What was found so far, in order; None outside a rehearsal."""
    return _found.get()


def capturing() -> bool:
    """Whether ops are recorded in a CUDA graph, whose replays may bring other levels."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


_watched: ContextVar[dict[Hashable, Callable[[], bool]] | None] = ContextVar(
    "_watched", default=None
)


@contextmanager
def watch() -> Iterator[dict[Hashable, Callable[[], bool]]]:
    """Collects what models within say by :func:`read_by_capture`: a check of each."""
    token = _watched.set({})
    try:
        yield _watched.get()
    finally:
        _watched.reset(token)


def read_by_capture(name: Hashable, still: Callable[[], bool]) -> None:
    """Says, where a capture is on its way, that its replays read tensors of this name.

    ``still()`` is called before each replay: it brings the tensors up to date in their place, and
    says whether that place is still the same. It keeps them alive as long as the capture.
    """
    watched = _watched.get()
    if watched is not None:
        watched[name] = still
