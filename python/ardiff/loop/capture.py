"""What the capture of a loop in a CUDA graph and the models called in it tell one another.

While a CUDA graph is captured nothing can be copied to the CPU. So the loop is run once beforehand,
and what is read then, namely which rows share a level, is kept for the capture (:func:`rehearsal`).
A replay reads tensors that a model prepared, such as packed weights; before each replay the model
is asked to bring them up to date (:func:`watch`).
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
    """Around a run and the capture after it: rows whose levels are equal in the run share one set
    of modulations in the capture. The same levels must therefore be equal in every replay."""
    token = _found.set([])
    try:
        yield
    finally:
        _found.reset(token)


def rehearsed() -> list[Sets] | None:
    """The :data:`Sets` found so far in this rehearsal, in order; None outside a rehearsal."""
    return _found.get()


def capturing() -> bool:
    """Whether a CUDA graph is being captured, whose replays may have other levels."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


_watched: ContextVar[dict[Hashable, Callable[[], bool]] | None] = ContextVar(
    "_watched", default=None
)


@contextmanager
def watch() -> Iterator[dict[Hashable, Callable[[], bool]]]:
    """Collects the checks that models register by :func:`read_by_capture` inside the block."""
    token = _watched.set({})
    try:
        yield _watched.get()
    finally:
        _watched.reset(token)


def read_by_capture(name: Hashable, still: Callable[[], bool]) -> None:
    """Registers, within :func:`watch`, tensors that the replays of the capture will read.

    ``still()`` is called before each replay. It writes current values into those tensors and
    returns whether they are still the model's own; if not, the loop is captured anew. ``still``
    holds the tensors, so that they live as long as the capture.
    """
    watched = _watched.get()
    if watched is not None:
        watched[name] = still
