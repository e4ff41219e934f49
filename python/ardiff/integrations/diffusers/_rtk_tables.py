"""RTK tables whose stages begin at given levels, and the model calls that they make.

The first level is called once, each further one `inner` + 1 times: by the inner steps of the stage
that ends there, and then by the start of the next stage or, after the last, the data prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from ...solvers import rtk_uld
from ...solvers._rtk import adjusted as metropolis
from ...solvers._rtk import stages as rtk
from ...tables.paths import Path, transition
from ...tables.table import StepTable, TableBuilder


def split_calls(calls: int, inner: int) -> list[int]:
    """Inner steps of each stage, `inner` or more, such that all make `calls` model calls.

    Fewer calls than a stage needs leave one stage with fewer steps; one call leaves none.
    """
    if calls < 2:
        return []
    stages = max(1, (calls - 1) // (inner + 1))
    least, more = divmod(calls - 1 - stages, stages)
    return [least + (i < more) for i in range(stages)]


def read_calls(levels: Sequence[float], inner: int) -> tuple[list[float], list[int]]:
    """Grid and inner steps from a list of levels: one per stage, or one per call as in `timesteps`.

    Raises:
        ValueError: no levels, rising levels, or a repeated first level.
    """
    groups = [(level, len(list(group))) for level, group in groupby(levels)]
    grid = [level for level, _ in groups]
    if not grid or any(b >= a for a, b in zip(grid, grid[1:], strict=False)):
        raise ValueError(f"timesteps must be in descending order, got {list(levels)}")
    counts = [count for _, count in groups]
    if max(counts) == 1:
        return grid, [inner] * (len(grid) - 1)
    if counts[0] != 1:
        raise ValueError(f"the first timestep is called once, got {counts[0]} times {grid[0]:g}")
    return grid, [count - 1 for count in counts[1:]]


class Stages(NamedTuple):
    """A table, and what a run needs that begins within one of its stages.

    Attributes:
        table: the rows.
        spread: for each row s / r of its stage, x_a / r = x_b + (s / r) n; None where a stage
            begins and at the end, which need no anchor.
    """

    table: StepTable
    spread: tuple[float | None, ...]


def uld_table(
    path: Path,
    prediction: str,
    grid: Sequence[float],
    inner: Sequence[int],
    gamma: float,
    tau: float,
) -> Stages:
    """`ardiff.solver("rtk-uld")` on a grid, with `inner[i]` steps in stage i."""
    rtk.check_positive("rtk-uld", gamma=gamma, tau=tau)
    builder = TableBuilder(path, prediction, "rtk-uld")
    rtk_uld.rows(builder, grid, inner, gamma, tau)
    return Stages(builder.finish(grid[-1], op="uld"), _spreads(path, grid, inner))


def mala_table(
    path: Path, prediction: str, grid: Sequence[float], inner: Sequence[int], tau: float
) -> Stages:
    """`ardiff.solver("rtk-mala")` on a grid, with `inner[i]` proposals in stage i."""
    rtk.check_positive("rtk-mala", tau=tau)
    builder = TableBuilder(path, prediction, "rtk-mala")
    metropolis.langevin_rows(builder, grid, inner, tau)
    table = builder.finish(grid[-1], calls_model=not any(inner[-1:]))
    return Stages(table, _spreads(path, grid, [2 * count for count in inner]))


def _spreads(path: Path, grid: Sequence[float], rows: Sequence[int]) -> tuple[float | None, ...]:
    """:attr:`Stages.spread` of stages that have `rows[i]` rows after their start."""
    found: list[float | None] = []
    for a, b, count in zip(grid[:-1], grid[1:], rows, strict=True):
        t = transition(path, a, b)
        # at alpha_a = 0 the kernel does not depend on x_a
        spread = float(np.sqrt(t.s2)) / t.r if t.r > 0 else 0.0
        found += [None, *[spread] * count]
    return (*found, None)
