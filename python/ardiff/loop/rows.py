"""The one executor of rows: a table on a state, advanced by whoever makes the model's calls.

    rows = Rows(schedule, x, key=key, stream=stream)
    while not rows.ended:
        if rows.calls_model:
            rows.take([model(rows.query(), level_of[rows.index])])
        rows.execute()
    rows.x

It asks for nothing itself, so that every face can drive it: :func:`ardiff.loop.run.run`, which
calls the model in a loop of its own; the samplers over sigmas, which tell a callback before a row;
a scheduler of diffusers, whose `step` is given one output at a time (:meth:`Rows.advance`).

Schedulers without a state between their steps have no use for a `Rows`: they run a row by
:func:`launch`, the op that it runs too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..noise import Address, Spans
from ..tables.plan import Schedule, Step
from .ladder import Ladder
from .state import State, launch

__all__ = ["Decision", "Program", "Rows", "launch"]


class Program(NamedTuple):
    """A schedule with the tensors of each iteration taken apart, for many runs of it.

    Attributes:
        schedule: the whole.
        steps: of each iteration.
        draws: int32 `[1]` of each iteration.
        has_midpoints: whether any row calls halfway to a proposal.
    """

    schedule: Schedule
    steps: tuple[Step, ...]
    draws: tuple[Tensor, ...]
    has_midpoints: bool

    @classmethod
    def of(cls, schedule: Schedule) -> Program:
        """The program of a schedule."""
        midpoints = any(step.midpoint is not False for step in schedule.plan)
        return cls(schedule, tuple(schedule.steps()), schedule.buffers.draw.split(1), midpoints)


class Decision(NamedTuple):
    """What an accept row decided for every sample.

    Attributes:
        iteration: of the loop; in a run of one table, the row.
        accepted: bool `[B]`.
        log_alpha: float32 `[B]`, -inf where a proposal was not finite, NaN for samples that were
            not at an accept row.
    """

    iteration: int
    accepted: Tensor
    log_alpha: Tensor


class Rows:
    """The rows of a schedule, one iteration after another.

    Args:
        schedule: what to execute, on the device of `x`; or the program of it.
        x: `[B, d]` float32 (bfloat16 too for `diffusion` rows alone), or `[B, ...]` contiguous
            inside a sample, for schedules of one table. In place it is written.
        key: int64 `[1]`; or, in place, (slice of the samples, key) for each run of neighbours.
        stream: int64 `[B]`.
        in_place: whether rows are run by the in-place ops. Else no tensor is ever written, so that
            whoever was shown one may keep it.
        options: noise_scale and x0_clamp of the ops, for every row that is no accept row.
        weights: guidance weights; a call then has an output for each condition.
        ladder: moves the samples between the tables of its rungs.
        energy: ``energy(iteration, x) -> float32 [B]``, for schedules that compare energies.
        decisions: a list to which each accept row's :class:`Decision` is appended.
        first: the iteration to begin at. Accept rows before the first proposal are left out.
        memory, v: what a run that begins within a table has; zeros by default.

    Attributes:
        index: the iteration that is executed next.
        state: position, memory, velocity, last output and origin.
        key, stream: may be set anew between iterations.
        spans: the samples that share a key, None where all do.
    """

    def __init__(
        self,
        schedule: Schedule | Program,
        x: Tensor,
        *,
        key: Tensor | Spans,
        stream: Tensor,
        in_place: bool = False,
        options: dict[str, Tensor | float | None] | None = None,
        weights: Sequence[Tensor] = (),
        ladder: Ladder | None = None,
        energy: Callable[[int, Tensor], Tensor] | None = None,
        decisions: list[Decision] | None = None,
        first: int = 0,
        memory: Tensor | None = None,
        v: Tensor | None = None,
    ) -> None:
        program = schedule if isinstance(schedule, Program) else Program.of(schedule)
        schedule, self._steps, self._draws, has_midpoints = program
        self.spans = spans = None if isinstance(key, Tensor) else key
        self.state = State(
            x,
            schedule,
            has_midpoints,
            in_place=in_place,
            options=options or {},
            spans=spans,
            memory=memory,
            v=v,
        )
        self.state.weights = list(weights)
        self.key, self.stream = key if spans is None else spans[0][1], stream
        self.index = first
        self._coef, self._ragged = schedule.buffers.coef, schedule.buffers.row.shape[1] > 1
        self._ladder, self._energy, self._decisions = ladder, energy, decisions

    @property
    def ended(self) -> bool:
        """Whether every row has been executed."""
        return self.index == len(self._steps)

    @property
    def calls_model(self) -> bool:
        """Whether the next iteration needs the model's outputs, for any sample."""
        return self._steps[self.index].calls_model is not False

    @property
    def at_midpoint(self) -> bool:
        """Whether that call is halfway to a proposal, for any sample."""
        return self._steps[self.index].midpoint is not False

    @property
    def x(self) -> Tensor:
        """The state."""
        return self.state.x

    @property
    def out(self) -> Tensor:
        """The model output that belongs to the state; zeros before the first call."""
        return self.state.out

    def query(self) -> Tensor:
        """Where the model is called: the state, or halfway to it from a proposal's origin."""
        return self.state.query(self._steps[self.index])

    def take(self, outs: Sequence[Tensor]) -> None:
        """The model's outputs at :meth:`query`, one for each condition."""
        self.state.take(outs, self._steps[self.index])

    def advance(self, outs: Sequence[Tensor]) -> None:
        """Takes outputs and executes all rows up to the next call, or the end."""
        steps, k = self._steps, self.index
        self.state.take(outs, steps[k])
        self._execute(k, {})
        while self.index < len(steps) and steps[self.index].calls_model is False:
            self._execute(self.index, {})

    def execute(self, **noise: Tensor) -> None:
        """The launches of the next iteration, with given normals (`noise`, of `uld` rows `noise2`
        too) in place of the addressed ones."""
        self._execute(self.index, noise)

    def _execute(self, k: int, noise: dict[str, Tensor]) -> None:
        state, energy = self.state, self._energy
        launches, calls, _, saves, margin = step = self._steps[k]
        if saves is not False:
            if energy is not None and (calls is not False or state.energy is None):
                state.energy = energy(k, state.x)
            state.save_origin(saves)
        if energy is not None and any(kind.op == "accept" for kind, _ in launches):
            state.energy = energy(k, state.x)
        address = Address(self._draws[k], self.key, self.stream)
        for kind, row in launches:
            if self._ladder is not None:
                row = self._ladder.rows(row)
            at = (self._coef, row)
            op = kind.op
            if op != "accept":
                if isinstance(margin, Tensor) or margin > 0:
                    state.set_ball(op, at, address, step)
                state.move(op, at, address, noise)
            elif state.origin:  # else the run began after its proposal: there is no way back
                self._decide(row, *state.accept(at, address, kind))
        self.index = k + 1

    def _decide(self, row: Tensor, accepted: Tensor, log_alpha: Tensor) -> None:
        if self._ladder is None and self._ragged:
            accepted = accepted & (row >= 0)
            log_alpha = torch.where(row >= 0, log_alpha, torch.nan)
        if self._ladder is not None:
            self._ladder.observe(log_alpha)
        if self._decisions is not None:
            self._decisions.append(Decision(self.index, accepted, log_alpha))
