"""Checks of the backward ops: which gradients they are given, and which are wanted."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def leading_gradient(op: str, grads: Mapping[str, Tensor | None]) -> tuple[str, Tensor]:
    for name, grad in grads.items():
        if grad is not None:
            return name, grad
    *names, last = grads
    raise RuntimeError(f"{op}: pass at least one of {', '.join(names)} and {last}")


def check_wanted(op: str, wanted: int, results: int) -> None:
    if not 0 <= wanted < 2**results:
        raise RuntimeError(f"{op}: wanted must lie in [0, {2**results - 1}], got {wanted}")
