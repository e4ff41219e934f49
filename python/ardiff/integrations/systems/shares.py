"""What share of a run each part of a model takes."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

REST = "rest"


def measure(
    run: Callable[[], Any], parts: Iterable[tuple[str, Any, str]], device: torch.device | str
) -> dict[str, float]:
    """Seconds of each part in one call of `run`.

    A part's time is that within its methods less that within methods of other parts that these
    call. Threads are timed each for itself, so that the parts of some that run at once take longer
    together than the run. On a GPU the device is waited for at each method's begin and end, so that
    the sum is longer than the run would be without.

    Args:
        parts: name of the part, an object, and the name of its method that is to be timed.

    Returns:
        Seconds by part, and the time in which no part ran as ``rest``.
    """
    waits = torch.device(device).type == "cuda"
    spent: dict[str, float] = {}
    own, lock = threading.local(), threading.Lock()
    running, idle_since = 0, time.perf_counter()

    def add(part: str, seconds: float) -> None:
        spent[part] = spent.get(part, 0.0) + seconds

    def switch(step: int, part: str | None = None) -> None:
        """Begins `part`, or ends the one that this thread is in."""
        nonlocal running, idle_since
        if waits:
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        stack = vars(own).setdefault("stack", [])
        with lock:
            if stack:
                add(stack[-1], now - own.last)
            if not running:
                add(REST, now - idle_since)
            running, idle_since = running + step, now
        own.last = now
        if part is None:
            stack.pop()
        else:
            stack.append(part)

    def timed(part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            switch(1, part)
            try:
                return method(*args, **kwargs)
            finally:
                switch(-1)

        return call

    absent, undo = object(), []
    try:
        for part, owner, name in parts:
            undo.append((owner, name, vars(owner).get(name, absent)))
            setattr(owner, name, timed(part, getattr(owner, name)))
        idle_since = time.perf_counter()
        run()
        if waits:
            torch.cuda.synchronize(device)
        add(REST, 0.0 if running else time.perf_counter() - idle_since)
    finally:
        for owner, name, value in reversed(undo):
            if value is absent:
                vars(owner).pop(name, None)
            else:
                setattr(owner, name, value)
    return spent
