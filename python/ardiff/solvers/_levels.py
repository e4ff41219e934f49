"""The time grid that a solver asks for, as ``levels(n)``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..tables.paths import Path, time_grid

Levels = Callable[[int], np.ndarray]


def check_steps(steps: int) -> int:
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 1:
        raise ValueError(f"steps must be an integer of 1 or more, got {steps!r}")
    return int(steps)


def grid_key(
    grid: str | Sequence[float] | np.ndarray = "log-snr",
    ratio_max: float = 40.0,
    ratio_min: float = 0.002,
    rho: float = 7.0,
) -> tuple:
    """The arguments of a grid, hashable; as :func:`ardiff.solver` takes them."""
    try:
        levels = grid if isinstance(grid, str) else tuple(float(level) for level in grid)
    except TypeError:
        raise TypeError(f"grid must be a name or a sequence of levels, got {grid!r}") from None
    return levels, float(ratio_max), float(ratio_min), float(rho)


def levels_of(name: str, path: Path, steps: int, key: tuple) -> Levels:
    """What solver `name` asks for its levels."""
    grid, ratio_max, ratio_min, rho = key

    def levels(n: int) -> np.ndarray:
        if isinstance(grid, str):
            return time_grid(path, n, grid, ratio_max=ratio_max, ratio_min=ratio_min, rho=rho)
        if len(grid) != n:
            raise ValueError(
                f"{name} with steps={steps} needs {n} levels, the grid has {len(grid)}"
            )
        return np.array(grid)

    return levels
