"""What the run loop does at each of its iterations: one table for all samples, or one for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .table import DeviceTable, StepTable

Flag = bool | Tensor  # of all live samples, or bool [B, 1]


class Step(NamedTuple):
    """One iteration.

    Attributes:
        launches: (op, row), row int32 `[1]` or `[B]`; -1 where a sample has finished or this
            iteration of its own table runs another op.
        calls_model, midpoint, saves_origin: as in :class:`ardiff.table.StepTable`.
        ball_margin: as there, a number or float32 `[B]`.
        accepts: samples at an accept row.
    """

    launches: tuple[tuple[str, Tensor], ...]
    calls_model: Flag
    midpoint: Flag
    saves_origin: Flag
    ball_margin: float | Tensor
    accepts: Flag


class Schedule(NamedTuple):
    """The loop's iterations and the tensors they share.

    Attributes:
        steps: one an iteration.
        coef: float32 `[rows of all tables, 16]`.
        level: float32 `[iterations]`, or `[iterations, B]` where samples have their own tables.
        draw: int32 `[iterations]`, 0 up: it addresses the noise.
        kinetic, accepts, second_memory, energy: what the state and the run need.
    """

    steps: tuple[Step, ...]
    coef: Tensor
    level: Tensor
    draw: Tensor
    kinetic: bool
    accepts: bool
    second_memory: bool
    energy: bool


def uniform(table: DeviceTable) -> Schedule:
    """Every sample runs the rows of `table`."""
    rows = table.row.split(1)
    steps = []
    for i, op in enumerate(table.op):
        skip = table.midpoint[i]
        steps.append(
            Step(
                () if skip else ((op, rows[i]),),
                table.calls_model[i],
                skip,
                table.saves_origin[i],
                table.ball_margin[i],
                op == "accept" and not skip,
            )
        )
    return Schedule(
        tuple(steps), table.coef, table.level, table.row, "uld" in table.op, "accept" in table.op,
        table.second_memory, table.energy,
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
        ValueError: no tables, tables of different paths, predictions, memories or energies, or an
            index out of range.
    """

    def __init__(self, tables: Sequence[StepTable], index: Sequence[int] | Tensor) -> None:
        self.tables = tuple(tables)
        if not self.tables:
            raise ValueError("a RaggedTable needs one StepTable or more")
        for name in ("path", "prediction", "second_memory", "energy"):
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
        op = spread(lambda i, t: t.op, "", object)
        flags = {
            name: spread(lambda i, t, name=name: getattr(t, name), 0, float)
            for name in ("calls_model", "midpoint", "saves_origin", "ball_margin")
        }
        live = rows >= 0
        steps = []
        for k in range(iterations):
            running = live[k] & ~flags["midpoint"][k].astype(bool)
            ops = sorted(set(op[k][running]), key=list(op[k]).index)
            launches = []
            for name in ops:
                chosen = np.where(running & (op[k] == name), rows[k], -1)
                launches.append((name, torch.tensor(chosen, dtype=torch.int32, device=device)))
            each = {
                name: _flag(flags[name][k].astype(bool), live[k], device)
                for name in ("calls_model", "midpoint", "saves_origin")
            }
            margin = torch.tensor(flags["ball_margin"][k], dtype=torch.float32, device=device)
            steps.append(
                Step(
                    launches=tuple(launches),
                    ball_margin=margin if bool((margin > 0).any()) else 0.0,
                    accepts=_flag(running & (op[k] == "accept"), np.ones_like(running), device),
                    **each,
                )
            )
        coef = torch.cat([table.coef(device) for table in self.tables])
        return Schedule(
            tuple(steps), coef, torch.tensor(level, device=device).reshape(iterations, len(which)),
            torch.arange(iterations, dtype=torch.int32, device=device),
            "uld" in self.op, "accept" in self.op, self.second_memory, self.energy,
        )  # fmt: skip


def _flag(values: np.ndarray, live: np.ndarray, device: torch.device | str) -> Flag:
    """True or False where the samples of `live` agree, else bool `[B, 1]`."""
    if not values[live].any():
        return False
    if values[live].all():
        return True
    return torch.tensor(values & live, device=device)[:, None]
