"""What a run before a capture finds out for it: a capture reads nothing back."""

from __future__ import annotations

from collections.abc import Iterator
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
