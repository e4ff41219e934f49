"""Rows that solvers with one model call per step have in common."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..tables.paths import Path, Transition, transition
from ..tables.table import StepTable, TableBuilder

Step = Callable[[Transition, "Transition | None"], dict[str, float]]


def one_call_table(
    name: str,
    path: Path,
    prediction: str,
    levels: Callable[[int], np.ndarray],
    steps: int,
    denoise_last: bool,
    step: Step,
) -> StepTable:
    """A `diffusion_step` row for each pair of neighbouring levels, then a data prediction.

    `step(transition, previous)` gives the columns besides p_x and p_o; `previous` is the transition
    before, None at the first.
    """
    grid = levels(steps if denoise_last else steps + 1)
    builder, previous = TableBuilder(path, prediction, name), None
    for a, b in zip(grid[:-1], grid[1:], strict=True):
        here = transition(path, a, b)
        p_x, p_o = builder.data_prediction(a)
        builder.add("diffusion", a, p_x=p_x, p_o=p_o, **step(here, previous))
        previous = here
    return builder.finish(grid[-1] if denoise_last else None)
