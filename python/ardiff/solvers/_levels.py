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
    grid: str | Sequence[float] | np.ndarray | None = None,
    ratio_max: float = 40.0,
    ratio_min: float = 0.002,
    rho: float | None = None,
    shift: float = 1.0,
) -> tuple:
    """The arguments of a grid, hashable; as :func:`ardiff.solver` takes them."""
    named = grid is None or isinstance(grid, str)
    try:
        levels = grid if named else tuple(float(level) for level in grid)
    except TypeError:
        raise TypeError(f"grid must be a name or a sequence of levels, got {grid!r}") from None
    if shift != 1 and not named:
        raise ValueError("shift moves the levels of a named grid: shift the given levels yourself")
    exponent = None if rho is None else float(rho)
    return levels, float(ratio_max), float(ratio_min), exponent, float(shift)


def levels_of(name: str, path: Path, steps: int, key: tuple, own: bool = False) -> Levels | None:
    """What solver `name` asks for its levels, where no grid is asked for those of ``log-snr``; or
    None for a solver with levels of its own."""
    grid, *rest = key
    if grid is None and own:
        if rest[-1] != 1:
            raise ValueError(f"{name} has levels of its own: shift needs a named grid")
        return None
    options = dict(zip(("ratio_max", "ratio_min", "rho", "shift"), rest, strict=True))

    def levels(n: int) -> np.ndarray:
        if grid is None or isinstance(grid, str):
            return time_grid(path, n, grid or "log-snr", **options)
        if len(grid) != n:
            raise ValueError(
                f"{name} with steps={steps} needs {n} levels, the grid has {len(grid)}"
            )
        return np.array(grid)

    levels.named = grid is None or isinstance(grid, str)
    return levels
