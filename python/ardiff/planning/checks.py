"""Whether numbers given by a caller make sense, before anything is measured."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np

LIMIT = 1e30  # the theory raises L to its fourth power, and d to its second: float64 holds these
MOST_CALLS = 100_000  # a hundred times what a path is trained on


def check_counts(least: int = 1, /, **values: Any) -> None:
    """ValueError unless each value is an integer of `least` or more."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{name} must be an integer of {least} or more, got {value!r}")


def check_calls(name: str, value: Any) -> None:
    """ValueError unless a number of model calls, of which a table can be made in some seconds."""
    check_counts(**{name: value})
    if value > MOST_CALLS:
        raise ValueError(f"{name} must be {MOST_CALLS:,} at most, got {value}")


def check_positive(**values: Any) -> None:
    """ValueError unless each value is a number above 0, between 1 / :data:`LIMIT` and it."""
    for name, value in values.items():
        if not is_number(value) or not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value!r}")
        if not 1 / LIMIT <= value <= LIMIT:
            raise ValueError(f"{name} must be from {1 / LIMIT:g} to {LIMIT:g}, got {value!r}")


def is_number(value: Any) -> bool:
    """Whether a real number, which no truth value is."""
    return isinstance(value, (Real, np.number)) and not isinstance(value, bool)
