"""What share of a run each part of a model takes."""

from __future__ import annotations

import functools
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
    call. On a GPU the device is waited for at each method's begin and end, so that the sum is
    longer than the run would be without.

    Args:
        parts: name of the part, an object, and the name of its method that is to be timed.

    Returns:
        Seconds by part, and what is in no part as ``rest``.
    """
    waits = torch.device(device).type == "cuda"
    spent: dict[str, float] = {}
    stack: list[str] = [REST]
    last = [0.0]

    def switch() -> None:
        if waits:
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        spent[stack[-1]] = spent.get(stack[-1], 0.0) + now - last[0]
        last[0] = now

    def timed(part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            switch()
            stack.append(part)
            try:
                return method(*args, **kwargs)
            finally:
                switch()
                stack.pop()

        return call

    absent, undo = object(), []
    try:
        for part, owner, name in parts:
            undo.append((owner, name, vars(owner).get(name, absent)))
            setattr(owner, name, timed(part, getattr(owner, name)))
        last[0] = time.perf_counter()
        run()
        switch()
    finally:
        for owner, name, value in reversed(undo):
            if value is absent:
                vars(owner).pop(name, None)
            else:
                setattr(owner, name, value)
    return spent
