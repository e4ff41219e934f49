"""The loop's plan of a table: what each iteration launches, for one table or one per sample."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from .table import DeviceTable, StepTable

Flag = bool | Tensor  # of all live samples, or bool [B, 1]


class At(NamedTuple):
    """Which row of a buffer holds a tensor that differs between samples (:class:`Buffers`)."""

    place: int


class Kind(NamedTuple):
    """What a launch runs: the op, and for ``accept`` whether the model was called halfway too (at
    a midpoint) and whether proposals outside a ball are rejected."""

    op: str
    midpoint: bool = False
    ball: bool = False


class Launch(NamedTuple):
    """A launch of an op: `row` is int32 `[1]` or `[B]`, -1 where a sample has finished or this
    iteration of its own table runs another kind."""

    kind: Kind
    row: Tensor | At


class Step(NamedTuple):
    """One iteration of the loop. In a plan each tensor is given as an :class:`At`, an index into
    a buffer; :meth:`Schedule.steps` puts the tensor itself in its place.

    Attributes:
        launches: of the kinds that any sample runs; each sample is in one of them at most.
        calls_model, midpoint, saves_origin: as in :class:`ardiff.tables.table.StepTable`.
        ball_margin: as there, a number or float32 `[B]`.
    """

    launches: tuple[Launch, ...]
    calls_model: Flag | At
    midpoint: Flag | At
    saves_origin: Flag | At
    ball_margin: float | Tensor | At


class Buffers(NamedTuple):
    """The tensors of a schedule.

    Attributes:
        coef: float32 `[rows of all tables, 20]`.
        level: float32 `[iterations]`, or `[iterations, B]` where samples have their own tables.
        draw: int32 `[iterations]`, counted from 0; it addresses the noise.
        row: int32 `[launches, 1]` or `[launches, B]`.
        flag: bool `[flags, B, 1]`.
        margin: float32 `[margins, B]`.
    """

    coef: Tensor
    level: Tensor
    draw: Tensor
    row: Tensor
    flag: Tensor
    margin: Tensor


class Schedule(NamedTuple):
    """The loop's iterations: a plan, which is hashable, and the tensors that fill it.

    Attributes:
        plan: one step per iteration.
        buffers: what its steps refer to.
        kinetic, accepts, memories, learned_range, energy: what the state and the run need.
    """

    plan: tuple[Step, ...]
    buffers: Buffers
    kinetic: bool
    accepts: bool
    memories: int
    learned_range: bool
    energy: bool

    def steps(self) -> Iterator[Step]:
        """The plan with its tensors."""
        rows, flags, margins = (
            buffer.unbind(0)
            for buffer in (self.buffers.row, self.buffers.flag, self.buffers.margin)
        )
        for step in self.plan:
            launches = tuple(Launch(kind, rows[at.place]) for kind, at in step.launches)
            margin = step.ball_margin
            margin = margins[margin.place] if isinstance(margin, At) else margin
            kinds = (step.calls_model, step.midpoint, step.saves_origin)
            calls, midpoint, saves = (
                flags[kind.place] if isinstance(kind, At) else kind for kind in kinds
            )
            yield Step(launches, calls, midpoint, saves, margin)


def launch_kinds(table: StepTable | DeviceTable) -> list[Kind | None]:
    """The kind of each row; None for a midpoint, which runs no op."""
    kinds: list[Kind | None] = []
    midpoint = ball = False
    for op, halfway, margin in zip(table.op, table.midpoint, table.ball_margin, strict=True):
        midpoint, ball = midpoint or bool(halfway), ball or bool(margin > 0)
        if halfway:
            kinds.append(None)
        elif op == "accept":
            kinds.append(Kind(op, midpoint, ball))
            midpoint = False
        else:
            kinds.append(Kind(op))
    return kinds


def uniform(table: DeviceTable) -> Schedule:
    """Every sample runs the rows of `table`."""
    plan = []
    for i, kind in enumerate(launch_kinds(table)):
        skip = kind is None
        plan.append(
            Step(
                () if skip else (Launch(kind, At(i)),),
                table.calls_model[i],
                skip,
                table.saves_origin[i],
                table.ball_margin[i],
            )
        )
    none = table.row[:0, None]
    buffers = Buffers(
        table.coef, table.level, table.row, table.row[:, None], none.bool(), none.float()
    )
    return Schedule(
        tuple(plan), buffers, "uld" in table.op, "accept" in table.op, table.memories,
        table.learned_range, table.energy,
    )  # fmt: skip
