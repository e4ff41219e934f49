"""A run in fewer rounds: the model is called at L rows of a sample at once.

A round drafts the next L rows of each sample on guessed data predictions (`lookahead_draft`), calls
the model at all their states in one batch, and keeps the rows that hold (`lookahead_verify`). Since
noise has an address, it is known before the step; since the levels are known, so are all
modulations. Samples go at their own pace; one that has ended is no longer evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ardiff_kernels import ops

from ..guide import Guidance
from ..noise import Spans
from ..tables.columns import DIFFUSION_COLUMNS, WIDTH
from ..tables.lookahead import lookahead_table
from ..tables.ragged import RaggedTable
from ..tables.table import StepTable
from .checks import check_output
from .path_noise import PathNoise
from .run import _outside
from .state import launch

MODES = ("speculative", "picard")
MOST = 16  # rows that "auto" looks ahead at most
_FURTHER = 10  # and beyond those that the last round kept: what is evaluated there guesses later
TOLERANCE = 1e-4

Outputs = Callable[[Tensor, Tensor, Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class Lookahead:
    """How far a run looks ahead, and by which rule drafted rows are kept.

    Attributes:
        rows: L, the rows evaluated at once; or "auto": up to :data:`MOST`, for each sample what its
            own last round supports.
        mode: "speculative": samples have exactly the law of the rows one after another; "picard":
            samples are those of the rows one after another, within the tolerance.
        tolerance: of "picard", the root mean square by which a row may differ from what the model's
            own data prediction gives, in units of sqrt(alpha^2 + sigma^2) of the next level: the
            state's standard deviation for data of unit variance. 0: no bit may differ.

    Raises:
        ValueError, TypeError: an unknown mode, L below 1, a negative tolerance or one for
            "speculative".
    """

    rows: int | str
    mode: str = "speculative"
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"unknown mode {self.mode!r}; known: {', '.join(MODES)}")
        whole = isinstance(self.rows, (int, np.integer)) and not isinstance(self.rows, bool)
        if self.rows != "auto" and not whole:
            raise TypeError(f'lookahead must be an integer or "auto", got {self.rows!r}')
        if whole and self.rows < 1:
            raise ValueError(f"lookahead must be 1 or more rows, got {self.rows}")
        if self.mode == "speculative" and self.tolerance is not None:
            raise ValueError('tolerance goes with mode="picard"; speculation has the exact law')
        if self.mode == "picard":
            tolerance = TOLERANCE if self.tolerance is None else float(self.tolerance)
            if not tolerance >= 0:
                raise ValueError(f"tolerance must be 0 or more, got {self.tolerance}")
            object.__setattr__(self, "tolerance", tolerance)

    @property
    def most(self) -> int:
        """The most rows of a round."""
        return MOST if self.rows == "auto" else int(self.rows)

    def check(self, table: Any, dtype: torch.dtype = torch.float32) -> None:
        """Refuses, before any work, what cannot be run so.

        Raises:
            ValueError: a table with accept rows, learned variance or rows that use an output again;
                one without noise, for speculation; a bfloat16 state.
            TypeError: what is no StepTable or RaggedTable, as of ``adapt="sample"``.
        """
        if not isinstance(table, (StepTable, RaggedTable)):
            raise TypeError(
                "lookahead needs a StepTable or a RaggedTable, not one that adapts; got a "
                + type(table).__name__
            )
        if dtype != torch.float32:
            raise ValueError(f"lookahead needs a float32 state, got {str(dtype)[6:]}")
        tables = [table] if isinstance(table, StepTable) else table.tables
        couples = [lookahead_table(each).couples for each in tables]
        if self.mode == "speculative" and not all(couples):
            raise ValueError(
                f"solver {table.solver} adds no noise, by which drafted rows could be kept with "
                'the exact law: use mode="picard"'
            )

    def next_rows(self, rows: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """L of the samples' next rounds, by the rows that each kept of its last."""
        if self.rows != "auto":
            return rows
        return np.minimum(kept + _FURTHER, MOST)


def check_lookahead(
    lookahead: int | str | None, mode: str | None, tolerance: float | None
) -> Lookahead | None:
    """The setting of a sampler's three arguments; None for a run row by row.

    Raises:
        ValueError, TypeError: as :class:`Lookahead`; a mode or tolerance without `lookahead`.
    """
    if lookahead is None:
        if mode is not None or tolerance is not None:
            raise ValueError("mode and tolerance go with lookahead: pass lookahead=L too")
        return None
    return Lookahead(lookahead, MODES[0] if mode is None else mode, tolerance)


@runtime_checkable
class RowwiseModel(Protocol):
    """A model that does what depends on level and condition once, for rows in any order."""

    def hoist_rows(self, levels: Tensor, conditions: Sequence[Any]) -> Outputs:
        """`levels` float32 `[T]`, conditions of `B` samples, one or more for guidance.

        Returns ``f(rows, samples, x)`` -> an output for each condition: rows and samples int64
        `[n]` say of which row of the table and of which sample each state of x `[n, d]` is.
        """
        ...


class Rounds(NamedTuple):
    """What the rounds of a run did.

    Attributes:
        windows: int32 `[n, 4]`, for each round of each sample: the sample, the first row, the rows
            drafted, those kept as drafted.
        rounds: int64 `[B]`, rounds of each sample.
        evaluated: states at which the model was called, guidance not counted.
    """

    windows: np.ndarray
    rounds: np.ndarray
    evaluated: int

    def histogram(self, rows: int) -> np.ndarray:
        """How many windows began at a row and kept so many drafted rows, int64 `[rows, L + 1]`, L
        the longest window."""
        _, first, drafted, kept = self.windows.T
        counts = np.zeros((rows, int(drafted.max(initial=0)) + 1), np.int64)
        np.add.at(counts, (first, kept), 1)
        return counts


class _Tables:
    """The tables of a run in one: a sample's rows begin at its `first` and end before its `end`."""

    def __init__(self, table: StepTable | RaggedTable, batch: int, device: torch.device) -> None:
        if isinstance(table, StepTable):
            tables, index = [table], np.zeros(batch, np.int64)
        else:
            tables, index = list(table.tables), table.index.numpy()
        found = [lookahead_table(each, device) for each in tables]
        lengths = np.array([len(each.calls_model) for each in found])
        ends = lengths.cumsum()
        self.first, self.end = (ends - lengths)[index], ends[index]

        def joined(name: str) -> Tensor:
            parts = [getattr(each, name) for each in found]
            return parts[0] if len(parts) == 1 else torch.cat(parts)

        self.coef, self.plan, self.level = joined("coef"), joined("plan"), joined("level")
        self.calls_model = joined("calls_model").numpy()
        self.op = None
        if any(each.op is not None for each in found):
            zeros = [torch.zeros(n, dtype=torch.int32, device=device) for n in lengths]
            kinds = [
                z if each.op is None else each.op for z, each in zip(zeros, found, strict=True)
            ]
            self.op = torch.cat(kinds)
        self.memories = tables[0].memories
        self.all_call = bool(self.calls_model.all())
        self.rows = torch.arange(len(self.level), device=device)
        self.zeros = torch.zeros_like(self.rows)


def run_lookahead(
    table: StepTable | RaggedTable,
    model: Any,
    x: Tensor,
    lookahead: Lookahead,
    *,
    key: Tensor | Spans,
    stream: Tensor,
    draw: int = 0,
    condition: Any = None,
    uncond: Any = None,
    guidance: Tensor | None = None,
    uncond2: Any = None,
    guidance2: Tensor | None = None,
    noise_scale: Tensor | None = None,
    x0_clamp: float | None = None,
    noise: Tensor | PathNoise | None = None,
    sums: Tensor | None = None,
) -> tuple[Tensor, Rounds]:
    """Run every row of `table` on `model` in rounds, from the initial state `x`.

    Args:
        table: a StepTable, or a RaggedTable of them.
        model: a function ``model(x, level, condition)`` or a :class:`RowwiseModel`. It is called
            with as many states as the samples' windows have rows, in the order of the samples; what
            of a condition is a tensor with a row per sample is repeated for each state.
        x: float32 `[B, d]`; not changed.
        draw: of row 0.
        noise: float32 `[T, B, d]`, normals in place of the addressed ones, for tables of
            ``diffusion`` rows alone; or those of a path.
        others: as of :func:`ardiff.loop.run.run`.

    Returns:
        The final state, a fresh tensor like x, and what the rounds did.

    Raises:
        ValueError, TypeError: a table that cannot be run with a lookahead, one without noise for
            speculation, a model that only hoists for rows in order, an output that does not fit.
    """
    batch = len(x)
    lookahead.check(table, x.dtype)
    tables = _Tables(table, batch, x.device)
    guided = Guidance.of(uncond, guidance, uncond2, guidance2)
    call = _bind(model, tables, [condition, *guided.conditions], guided.weights, batch)
    run = _Run(tables, lookahead, call, x, key, stream, draw)
    run.options = {"noise_scale": noise_scale, "x0_clamp": x0_clamp}
    run.noise, run.sums = noise, sums
    with torch.inference_mode():
        while run.live:
            run.round()
    return run.finish()


class _Run:
    """The state of a run between its rounds."""

    def __init__(self, tables, lookahead, call, x, key, stream, draw: int) -> None:
        batch, d = x.shape
        self._tables, self._lookahead, self._call = tables, lookahead, call
        self.x = x.clone(memory_format=torch.contiguous_format)
        self._memory = x.new_zeros(batch, d * tables.memories)
        self._v = None if tables.op is None else torch.zeros_like(self.x)
        first = torch.from_numpy(draw - tables.first).to(x.device, torch.int32)
        self._address = first, key, stream
        self._row = tables.first.copy()
        self._rows = np.full(batch, lookahead.most)
        self._known: dict[str, Tensor] = {}
        self._done: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._passed: list[tuple[np.ndarray, np.ndarray, Tensor]] = []
        self._evaluated = 0
        self.options: dict[str, Any] = {}
        self.noise: Tensor | PathNoise | None = None
        self.sums: Tensor | None = None

    @property
    def live(self) -> bool:
        """Whether any sample has rows left."""
        return bool((self._row < self._tables.end).any())

    def round(self) -> None:
        """Drafts, calls the model, verifies."""
        tables, row = self._tables, self._row
        count = np.minimum(self._rows, tables.end - row)
        both = torch.from_numpy(np.array((row, count), np.int32)).to(self.x.device)
        rows = int(count.max())
        place = (tables.coef, tables.plan, *both.unbind(0), *self._address)
        options = {**self.options, "op": tables.op, **self._known, "noise": self._normals(rows)}
        states, velocities, drafts = self._launch(
            ops.lookahead_draft, (self.x, self._memory), place, (rows,), v=self._v, **options
        )
        outs = self._outputs(states, row, count, rows)
        kinetic = {} if self._v is None else {"velocities": velocities}
        found = self._launch(
            ops.lookahead_verify, (states, drafts, outs, self._memory), place, (), **kinetic,
            **options, tolerance=self._lookahead.tolerance,
        )  # fmt: skip
        self.x, self._memory = found.x, found.memory
        self._v = None if self._v is None else found.v
        self._known = self._learned(states, found, place[2:4])
        new, kept = _on_host(found.row, found.accepted)
        self._done.append((row, count, kept))
        if self.sums is not None:
            self._passed.append((row, new, torch.sum(self.x, 1, dtype=torch.float32)))
        self._row = np.where(count > 0, new, row)
        self._rows = self._lookahead.next_rows(self._rows, kept)

    def _launch(
        self, launch: Callable, tensors: tuple, place: tuple, more: tuple, **options: Any
    ) -> Any:
        """One launch of an op, or one for each key."""
        coef, plan, row, count, draw, key, stream = place
        if isinstance(key, Tensor):
            return launch(*tensors, *place, *more, **options)
        parts = []
        for rows, own in key:
            shared = ("op", "x0_clamp", "tolerance")
            cut = {
                name: value if name in shared or value is None or len(value) == 1 else value[rows]
                for name, value in options.items()
            }
            at = (coef, plan, row[rows], count[rows], draw[rows], own, stream[rows])
            parts.append(launch(*(t[rows] for t in tensors), *at, *more, **cut))
        whole = [torch.cat(each) for each in zip(*parts, strict=True)]
        kind = type(parts[0])
        return kind(*whole) if hasattr(kind, "_fields") else whole

    def _learned(self, states: Tensor, found: Any, window: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """What the next round's guesses are made of: this round's states and outputs."""
        return {
            "known_x": states[:, :-1], "known_0": found.x0, "gain": found.gain,
            "known_row": window[0], "known_count": window[1],
        }  # fmt: skip

    def _outputs(self, states: Tensor, row: np.ndarray, count: np.ndarray, rows: int) -> Tensor:
        """The model's outputs at the states of all windows, `[B, rows, d]`."""
        tables, (batch, d) = self._tables, self.x.shape
        if batch == 1 and tables.all_call:  # no copies
            self._evaluated += rows
            at = slice(int(row[0]), int(row[0]) + rows)
            out = self._call(tables.rows[at], tables.zeros[at], states[0, :rows])
            return out.view(1, rows, d)
        window, device = np.arange(rows), states.device
        at = np.minimum(row[:, None] + window, len(tables.level) - 1)
        sample, j = np.nonzero((window < count[:, None]) & tables.calls_model[at])
        self._evaluated += len(sample)
        if not len(sample):
            return torch.zeros(batch, rows, d, device=device)
        of_row, of_sample, of_state, of_out = torch.from_numpy(
            np.stack([at[sample, j], sample, sample * (rows + 1) + j, sample * rows + j])
        ).to(device)
        out = self._call(of_row, of_sample, states.flatten(0, 1).index_select(0, of_state))
        if len(sample) == batch * rows:
            return out.view(batch, rows, d)
        outs = out.new_zeros(batch * rows, d)
        return outs.index_copy_(0, of_out, out).view(batch, rows, d)

    def _normals(self, rows: int) -> Tensor | None:
        """The given normals of each sample's window, `[B, rows, d]`."""
        if self.noise is None:
            return None
        at = (self._row - self._tables.first)[:, None] + np.arange(rows)
        if isinstance(self.noise, PathNoise):
            at = torch.from_numpy(np.minimum(at, len(self.noise.times) - 1)).to(self.x.device)
            return self.noise.at(at, *self._address[1:], self.x.shape[1])
        at = torch.from_numpy(np.minimum(at, len(self.noise) - 1)).to(self.x.device)
        return self.noise[at, torch.arange(len(at), device=self.x.device)[:, None]]

    def finish(self) -> tuple[Tensor, Rounds]:
        """The final state and what the rounds did."""
        if self.sums is not None:
            self._write_sums(self.sums)
        done = np.array(self._done, np.int32).reshape(len(self._done), 3, len(self.x))
        row, count, kept = done.transpose(1, 0, 2)
        sample = np.broadcast_to(np.arange(len(self.x), dtype=np.int32), row.shape)
        first = self._tables.first.astype(np.int32)
        whole = np.stack([sample, row - first, count, kept], -1)[count > 0]
        rounds = np.bincount(whole[:, 0], minlength=len(self.x))
        return self.x.clone(), Rounds(whole, rounds, self._evaluated)

    def _write_sums(self, sums: Tensor) -> None:
        """The sum of each state after a round, for all rows that the round passed."""
        ranks = torch.arange(len(sums), device=sums.device)[:, None]
        for row, new, now in self._passed:
            ends = np.array((row, new), np.int64) - self._tables.first
            begin, end = torch.from_numpy(ends).to(sums.device)
            sums.copy_(torch.where((ranks >= begin) & (ranks < end), now, sums))


def _on_host(*counts: Tensor) -> tuple[np.ndarray, ...]:
    """int32 `[B]` on the host, from a GPU in one copy."""
    if counts[0].is_cpu:
        return tuple(each.numpy() for each in counts)
    return tuple(torch.stack(counts).cpu().numpy())


def _bind(
    model: Any, tables: _Tables, conditions: list, weights: Sequence[Tensor], batch: int
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """``f(rows, samples, x) -> output``, guided."""
    if hasattr(model, "hoist_rows"):
        with torch.inference_mode():
            outputs = model.hoist_rows(tables.level, conditions)
    elif callable(model):
        plain = _outside(model)

        def outputs(rows: Tensor, samples: Tensor, x: Tensor) -> list[Tensor]:
            level = tables.level[rows]
            return [
                plain(x, level, of_samples(condition, samples, batch)) for condition in conditions
            ]

    else:
        raise TypeError(
            f"lookahead evaluates rows in any order: {type(model).__name__} has only hoist, give "
            "it hoist_rows or make it callable"
        )
    # A row that makes the guided output the new state: guidance as the step ops round it.
    coef = torch.zeros(1, WIDTH, device=tables.level.device)
    coef[0, [DIFFUSION_COLUMNS.index(name) for name in ("p_o", "x_0")]] = 1.0
    guide = (coef, *torch.zeros(2, 1, dtype=torch.int32, device=coef.device))
    key = torch.zeros(1, dtype=torch.int64, device=coef.device)
    checked = False

    def call(rows: Tensor, samples: Tensor, x: Tensor) -> Tensor:
        nonlocal checked
        outs = list(outputs(rows, samples, x))
        if not checked:
            for out in outs:
                check_output(out, x, False)
            checked = True
        if len(outs) == 1:
            return outs[0]
        names = ("uncond_out", "uncond_out2"), ("guidance", "guidance2")
        factors = [each[samples] if len(each) > 1 else each for each in weights]
        options = dict(zip(names[0], outs[1:], strict=False))
        options |= dict(zip(names[1], factors, strict=False))
        return launch(
            "diffusion", x, outs[0], x, *guide, key, key.expand(len(x)).contiguous(), **options
        )[0]

    return call


def of_samples(condition: Any, samples: Tensor, batch: int) -> Any:
    """A condition for states of these samples: its tensors that have a row per sample, gathered."""

    def gather(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() == 0 or len(leaf) != batch:
            return leaf
        if batch == 1:
            return leaf.expand(len(samples), *leaf.shape[1:])
        return leaf[samples.to(leaf.device)]

    return tree_map(gather, condition)
