"""What the run loop does at each of its iterations: one table for all samples, or one for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .table import DeviceTable, StepTable

Flag = bool | Tensor  # of all live samples, or bool [B, 1]


class At(NamedTuple):
    """Where the buffers hold a value that differs between samples."""

    place: int


class Kind(NamedTuple):
    """What a launch runs: an op, and for ``accept`` whether its samples have a midpoint's output
    and a ball of their own."""

    op: str
    midpoint: bool = False
    ball: bool = False


class Launch(NamedTuple):
    """A launch of an op: `row` is int32 `[1]` or `[B]`, -1 where a sample has finished or this
    iteration of its own table runs another kind."""

    kind: Kind
    row: Tensor | At


class Step(NamedTuple):
    """One iteration. A plan has an :class:`At` wherever the loop has a tensor.

    Attributes:
        launches: of the kinds that any sample runs; each sample is in one of them at most.
        calls_model, midpoint, saves_origin: as in :class:`ardiff.table.StepTable`.
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
        coef: float32 `[rows of all tables, 16]`.
        level: float32 `[iterations]`, or `[iterations, B]` where samples have their own tables.
        draw: int32 `[iterations]`, 0 up: it addresses the noise.
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
        plan: one step an iteration.
        buffers: what its steps refer to.
        kinetic, accepts, second_memory, learned_range, energy: what the state and the run need.
    """

    plan: tuple[Step, ...]
    buffers: Buffers
    kinetic: bool
    accepts: bool
    second_memory: bool
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
        tuple(plan), buffers, "uld" in table.op, "accept" in table.op, table.second_memory,
        table.learned_range, table.energy,
    )  # fmt: skip


class RaggedTable:
    """A table for each sample: own rows, own number of steps, own levels, in the same launches.

    Iteration k runs row k of each sample's own table. A sample whose table has ended is finished:
    its state stays while others go on, so that it is what its table alone would give, to the bit.

    Args:
        tables: of one path and prediction.
        index: `[B]` integers, which table each sample runs.

    Attributes:
        calls: model calls of one run, those of the iterations in which any sample needs one.
        path, prediction, solver, op: of the tables.

    Raises:
        ValueError: no tables, tables of different paths, predictions, memories, variances or
            energies, or an index out of range.
    """

    def __init__(self, tables: Sequence[StepTable], index: Sequence[int] | Tensor) -> None:
        self.tables = tuple(tables)
        if not self.tables:
            raise ValueError("a RaggedTable needs one StepTable or more")
        for name in ("path", "prediction", "second_memory", "learned_range", "energy"):
            kinds = {getattr(table, name) for table in self.tables}
            if len(kinds) > 1:
                raise ValueError(
                    f"the tables of one run must agree in {name}, got {sorted(map(str, kinds))}"
                )
        self.index = torch.as_tensor(index).reshape(-1).cpu()
        integral = not self.index.is_floating_point() and self.index.dtype != torch.bool
        if not integral or bool(((self.index < 0) | (self.index >= len(self.tables))).any()):
            raise ValueError(
                f"the index of a RaggedTable must be integers in [0, {len(self.tables)})"
            )
        self.index = self.index.long()
        first = self.tables[0]
        self.path, self.prediction = first.path, first.prediction
        self.second_memory, self.energy = first.second_memory, first.energy
        self.learned_range = first.learned_range
        self.solver = "+".join(sorted({table.solver for table in self.tables}))
        self.op = tuple(sorted({op for table in self.tables for op in table.op}))

    @property
    def calls(self) -> int:
        used = [self.tables[i] for i in sorted(set(self.index.tolist()))]
        length = max((len(table) for table in used), default=0)
        calls = np.zeros(length, dtype=bool)
        for table in used:
            calls[: len(table)] |= table.calls_model
        return int(calls.sum())

    def __len__(self) -> int:
        return max((len(self.tables[i]) for i in set(self.index.tolist())), default=0)

    def init_scale(self, device: torch.device | str) -> Tensor:
        """Standard deviation of each sample's initial state, float32 `[B, 1]`."""
        scales = torch.tensor([table.init_scale for table in self.tables], dtype=torch.float32)
        return scales[self.index, None].to(device)

    def to(self, device: torch.device | str) -> Schedule:
        """The loop's iterations, with their tensors on `device`."""
        iterations = len(self)
        first = np.cumsum([0, *(len(table) for table in self.tables)])
        which = self.index.numpy()

        def spread(values, fill, dtype) -> np.ndarray:
            """`[tables, iterations]` of a field, `fill` past a table's end, then `[.., B]`."""
            whole = np.full((len(self.tables), iterations), fill, dtype=dtype)
            for i, table in enumerate(self.tables):
                kept = list(values(i, table))[:iterations]
                whole[i, : len(kept)] = kept
                if fill is None:
                    whole[i, len(kept) :] = kept[-1]
            return whole[which].T

        rows = spread(lambda i, t: range(first[i], first[i + 1]), -1, np.int32)
        level = spread(lambda i, t: t.level, None, object).astype(np.float32)
        kinds = [launch_kinds(table) for table in self.tables]
        known = sorted({kind for column in kinds for kind in column if kind is not None})
        code = {kind: i for i, kind in enumerate(known)} | {None: -1}
        codes = spread(lambda i, t: [code[kind] for kind in kinds[i]], -1, np.int32)
        flags = {
            name: spread(lambda i, t, name=name: getattr(t, name), 0, float)
            for name in ("calls_model", "midpoint", "saves_origin", "ball_margin")
        }
        live = rows >= 0
        launched, flagged, margins, plan = [], [], [], []

        def keep(values: list[np.ndarray], value: np.ndarray) -> At:
            values.append(value)
            return At(len(values) - 1)

        def flag(values: np.ndarray, among: np.ndarray) -> bool | At:
            """True or False where the samples of `among` agree."""
            if not values[among].any():
                return False
            return True if values[among].all() else keep(flagged, values & among)

        for k in range(iterations):
            launches = []
            for place in sorted(set(codes[k]) - {-1}):
                chosen = np.where(codes[k] == place, rows[k], -1)
                launches.append(Launch(known[place], keep(launched, chosen)))
            margin = flags["ball_margin"][k]
            choices = {
                name: flag(flags[name][k].astype(bool), live[k])
                for name in ("calls_model", "midpoint", "saves_origin")
            }
            plan.append(
                Step(
                    launches=tuple(launches),
                    ball_margin=keep(margins, margin) if (margin > 0).any() else 0.0,
                    **choices,
                )
            )

        batch = len(which)

        def buffer(values, dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.tensor(np.array(values), dtype=dtype, device=device).reshape(shape)

        buffers = Buffers(
            torch.cat([table.coef(device) for table in self.tables]),
            buffer(level, torch.float32, iterations, batch),
            torch.arange(iterations, dtype=torch.int32, device=device),
            buffer(launched, torch.int32, len(launched), batch),
            buffer(flagged, torch.bool, len(flagged), batch, 1),
            buffer(margins, torch.float32, len(margins), batch),
        )
        return Schedule(
            tuple(plan), buffers, "uld" in self.op, "accept" in self.op, self.second_memory,
            self.learned_range, self.energy,
        )  # fmt: skip
