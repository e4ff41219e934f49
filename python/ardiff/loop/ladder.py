"""Step sizes adapted to a target acceptance: a ladder of tables that differ in tau alone.

A sample moves on the ladder by its own decisions, or a pilot of fixed ids moves for all. Either way
the rung stops moving before the draws that count, and never depends on the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..tables.plan import Schedule, uniform
from ..tables.table import StepTable

# alpha = min(1, e^log_alpha) is counted in 16ths by comparisons: exact on every backend
_THRESHOLDS = torch.tensor([math.log((k + 0.5) / 16) for k in range(16)], dtype=torch.float32)


def acceptance_probability(log_alpha: Tensor) -> Tensor:
    """min(1, e^log_alpha) in 16ths, float32 `[B]`; 0 for -inf, NaN for NaN."""
    above = log_alpha[:, None] >= _THRESHOLDS.to(log_alpha.device)
    share = above.sum(1, dtype=torch.float32) / 16
    return torch.where(log_alpha.isnan(), torch.nan, share)


class Ladder:
    """Tables of one solver, rung by rung, and the rung on which each sample stands.

    After each of the first `adapting` accept rows a sample moves by its own acceptance probability
    a: its position, in rungs, by gain (a - target) / sqrt(n) at the n-th (Robbins & Monro 1951).
    From then on its rung is fixed. Every run begins at `start`.

    Args:
        tables: rung by rung, growing in step size: the same ops, levels and calls.
        batch: samples.
        target: acceptance rate to reach.
        adapting: accept rows after which samples move.
        gain: of the first move, in rungs.
        start: the rung on which every sample begins, the middle for None.
        scales: what each rung multiplies the step size by, for the record.

    Attributes:
        index: `[batch]` int64, the rung of each sample.
        path, prediction, solver, op, calls, init_scale: of the tables.

    Raises:
        ValueError: tables that differ in more than coefficients, or a target outside (0, 1).
    """

    def __init__(
        self,
        tables: Sequence[StepTable],
        batch: int,
        *,
        target: float = 0.57,
        adapting: int,
        gain: float = 4.0,
        start: int | None = None,
        scales: Sequence[float] | None = None,
    ) -> None:
        self.tables = tuple(tables)
        first = self.tables[0]
        check_target(target)
        if not len(first.accept_rows):
            raise ValueError(
                f"solver {first.solver} has no accept step, so no acceptance to adapt to"
            )
        for table in self.tables[1:]:
            if not same_structure(table, first):
                raise ValueError("the tables of a ladder must differ in their coefficients alone")
        self.start = (len(self.tables) - 1) // 2 if start is None else start
        self.target, self.adapting, self.gain, self.batch = target, adapting, gain, batch
        self.path, self.prediction, self.solver = first.path, first.prediction, first.solver
        self.op, self.calls, self.init_scale = first.op, first.calls, first.init_scale
        self.energy, self.learned_range = first.energy, first.learned_range
        self._scales = torch.tensor(scales or [math.nan] * len(self.tables), dtype=torch.float32)
        self.restart("cpu")

    def scales(self) -> Tensor:
        """The scale of each sample's rung, float32 `[batch]`."""
        return self._scales[self.index.cpu()]

    def restart(self, device: torch.device | str) -> None:
        """Every sample back to rung `start`."""
        self._position = torch.full(
            (self.batch,), float(self.start), dtype=torch.float32, device=device
        )
        self.index = self._position.round().long()
        self._seen = 0

    def to(self, device: torch.device | str) -> Schedule:
        """The schedule of a fresh run: one rung's iterations, the coefficients of all rungs."""
        self.restart(device)
        coef = torch.cat([table.coef(device) for table in self.tables])
        schedule = uniform(self.tables[0].to(device))
        return schedule._replace(buffers=schedule.buffers._replace(coef=coef))

    def rows(self, row: Tensor) -> Tensor:
        """The rows of the samples' own rungs, int32 `[B]`, for a row `[1]` of the tables."""
        return (row + self.index * len(self.tables[0])).to(torch.int32)

    def observe(self, log_alpha: Tensor) -> None:
        """Moves each sample by its own decision, unless its rung is fixed already."""
        if self._seen >= self.adapting:
            return
        self._seen += 1
        move = (acceptance_probability(log_alpha) - self.target) * (self.gain / self._seen**0.5)
        self._position = (self._position + move).clamp(0, len(self.tables) - 1)
        self.index = self._position.round().long()


def check_target(target: float) -> None:
    """ValueError unless an acceptance rate strictly between 0 and 1."""
    if not isinstance(target, (int, float)) or not 0 < target < 1:
        raise ValueError(f"target_acceptance must be in (0, 1), got {target!r}")


def same_structure(a: StepTable, b: StepTable) -> bool:
    """Whether two tables differ in their coefficients at most."""
    fields = ("level", "calls_model", "saves_origin", "midpoint")
    alike = all(np.array_equal(getattr(a, name), getattr(b, name)) for name in fields)
    return alike and a.op == b.op and a.init_scale == b.init_scale and a.energy == b.energy


def splice(tables: Sequence[StepTable], rung_of_stage: Sequence[int]) -> StepTable:
    """One table whose stage i has the rows of ``tables[rung_of_stage[i]]``."""
    first = tables[0]
    chosen = np.asarray(rung_of_stage)[stage_of_rows(first)]
    coefficients = np.stack([t.coefficients for t in tables])[chosen, np.arange(len(first))]
    margins = np.stack([t.ball_margin for t in tables])[chosen, np.arange(len(first))]
    return StepTable(
        coefficients, first.level, first.calls_model, first.op, first.init_scale, first.path,
        first.prediction, first.solver, first.saves_origin, first.midpoint, margins, first.energy,
        first.alpha, first.sigma,
    )  # fmt: skip


def stage_of_rows(table: StepTable) -> np.ndarray:
    """The stage of every row, int64 `[T]`; the rows after the last stage count as its own.

    Without accept rows a stage begins where an anchor is stored.
    """
    ends = table.accept_rows
    if not len(ends):
        return np.cumsum(table.column("a_z") != 0) - 1
    # a row belongs to the stage of the first accept row from it on
    nearest = np.minimum(np.searchsorted(ends, np.arange(len(table))), len(ends) - 1)
    return table.stage[nearest]
