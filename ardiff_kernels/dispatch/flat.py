"""Rows `[B, ...]` as rows `[B, d]`, for implementations that know two dimensions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor


def flat(value: Any) -> Any:
    """A view `[B, d]` of a tensor `[B, ...]` with contiguous rows; anything else as it is."""
    return value.flatten(1) if isinstance(value, Tensor) and value.dim() > 2 else value


def shaped(value: Tensor, like: Sequence[int]) -> Tensor:
    """A tensor `[B, k d]` with the trailing dimensions of `like`; `[n]` as it is."""
    if value.dim() != 2:
        return value
    inner = like[2:]
    return value.reshape(value.shape[0], value.shape[1] // math.prod(inner), *inner)


def on_rows(function: Callable) -> Callable:
    """`function` on tensors `[B, ...]`; the first argument tells the shape of its results."""

    @functools.wraps(function)
    def call(*args, **options):
        shape = args[0].shape
        if len(shape) == 2:
            return function(*args, **options)
        options = {name: flat(value) for name, value in options.items()}
        results = function(*map(flat, args), **options)
        return results and tuple(shaped(result, shape) for result in results)

    return call
