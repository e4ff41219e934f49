"""A table per sample: own rows, own number of steps and own levels, in the same launches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .plan import At, Buffers, Launch, Schedule, Step, launch_kinds
from .table import StepTable


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

    Example:
        Sample 0 takes 8 steps, samples 1 and 2 take 3::

            >>> import ardiff
            >>> choices = {"path": "flow", "prediction": "flow"}
            >>> tables = [ardiff.solver("flow-euler", steps=n, **choices) for n in (3, 8)]
            >>> table = ardiff.RaggedTable(tables, index=[1, 0, 0])
            >>> len(table), table.calls
            (8, 8)
    """

    def __init__(self, tables: Sequence[StepTable], index: Sequence[int] | Tensor) -> None:
        self.tables = tuple(tables)
        if not self.tables:
            raise ValueError("a RaggedTable needs one StepTable or more")
        for name in ("path", "prediction", "memories", "learned_range", "energy"):
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
        self.memories, self.energy = first.memories, first.energy
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
            tuple(plan), buffers, "uld" in self.op, "accept" in self.op, self.memories,
            self.learned_range, self.energy,
        )  # fmt: skip
