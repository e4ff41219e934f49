"""Which part of a system takes how much of its time: wall clock, each second counted once."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

REST = "rest"
_ABSENT = object()


class PartTimes:
    """Seconds of each part, without those of the parts called within it; `REST` is what is left."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._stack: list[str] = []
        self._since = 0.0

    def _switch(self) -> None:
        """Books the time up to now on the part that runs."""
        now = time.perf_counter()
        running = self._stack[-1] if self._stack else REST
        self.seconds[running] = self.seconds.get(running, 0.0) + now - self._since
        self._since = now

    def within(self, part: str, call: Callable) -> Callable:
        """`call`, whose time is the part's."""

        @functools.wraps(call)
        def timed(*args: Any, **options: Any) -> Any:
            self._switch()
            self._stack.append(part)
            try:
                return call(*args, **options)
            finally:
                self._switch()
                self._stack.pop()

        return timed

    def run(self, call: Callable[[], Any]) -> dict[str, float]:
        """Seconds of the parts of one call."""
        self.seconds, self._stack, self._since = {}, [], time.perf_counter()
        call()
        self._switch()
        return self.seconds


@contextmanager
def timing(model: Any, parts: Mapping[str, Sequence[str]]) -> Iterator[PartTimes]:
    """Times the methods meanwhile that are named by their paths from the model, such as
    ``model.language_model.forward``; the objects themselves get a method of that name.

    Raises:
        ValueError: a path that does not lead to a method.
    """
    times, undo = PartTimes(), []
    try:
        for part, paths in parts.items():
            for path in paths:
                owner, name = _find(model, path)
                undo.append((owner, name, vars(owner).get(name, _ABSENT)))
                vars(owner)[name] = times.within(part, getattr(owner, name))
        yield times
    finally:
        for owner, name, value in reversed(undo):
            if value is _ABSENT:
                del vars(owner)[name]
            else:
                vars(owner)[name] = value


def _find(model: Any, path: str) -> tuple[Any, str]:
    *names, method = path.split(".")
    owner = model
    for name in names:
        owner = getattr(owner, name, None)
    if not callable(getattr(owner, method, None)):
        raise ValueError(f"{type(model).__name__} has no method {path!r} to time")
    return owner, method
