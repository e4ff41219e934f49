"""A solver's table on given levels, however many model calls that takes.

A solver asks ``levels(n)`` for the grid that its bound on the calls allows. Where the levels are
given instead, by a list of sigmas or of timesteps, the bound is looked for that asks for as many.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..tables.paths import Path
from ..tables.table import StepTable
from . import check_options, table_function

_DOUBLINGS = 14  # more calls per level than any table makes


def over_levels(
    name: str,
    *,
    path: Path,
    prediction: str,
    levels: Sequence[float],
    denoise_last: bool,
    **options,
) -> StepTable:
    """The table of solver `name` whose steps or stages end at `levels`, noisiest first.

    One level leaves no step: it is a data prediction for every solver.

    Raises:
        ValueError: an option out of range, or levels on which the solver cannot run.
    """
    given, grid = check_options(name, options), np.array(levels, np.float64)
    if len(grid) == 1 and denoise_last:
        name, given = "ddpm", {}
    make = table_function(name)

    def attempt(steps: int) -> tuple[StepTable | None, int, ValueError | None]:
        """The table, or how many levels `steps` calls asked for at least, and the refusal."""
        asked: list[int] = []

        def levels_of(count: int) -> np.ndarray:
            asked.append(count)
            if count != len(grid):
                raise ValueError(f"{name} with steps={steps} needs {count} levels")
            return grid

        try:
            found = make(path, prediction, levels_of, steps, denoise_last=denoise_last, **given)
            return found, len(grid), None
        except ValueError as error:
            return None, min(asked, default=0), error

    low, high, refusal = 0, len(grid), None
    for _ in range(_DOUBLINGS):
        table, asked, error = attempt(high)
        if table is not None:
            return table
        refusal = refusal if asked > len(grid) else error
        if asked >= len(grid):
            break
        low, high = high, 2 * high
    while asked > len(grid) and high - low > 1:
        middle = (low + high) // 2
        table, found, error = attempt(middle)
        if table is not None:
            return table
        if found > len(grid):
            high = middle
        else:  # too few calls, which says why no number of them is right
            low, refusal = middle, error
    refusal = refusal or error
    raise ValueError(f"solver {name} cannot run on {len(grid)} given levels: {refusal}")
