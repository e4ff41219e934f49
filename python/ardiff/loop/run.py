"""The one loop: it executes a StepTable, row after row, on a model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..guide import Guidance
from ..noise import Spans
from ..tables.plan import Schedule, uniform
from ..tables.ragged import RaggedTable
from ..tables.table import DeviceTable, StepTable
from .checks import check_noise, check_output, check_x0_clamp
from .ladder import Ladder
from .path_noise import PathNoise
from .rows import Decision, Rows

Runnable = StepTable | DeviceTable | RaggedTable | Ladder | Schedule


@runtime_checkable
class HoistableModel(Protocol):
    """A model that does what depends on level and condition once, before the loop.

    With an attribute ``hoists_ragged = True`` it also serves samples with tables of their own.
    With a method ``hoist_guided(levels, conditions)`` it serves all conditions of guidance:
    ``f(row, x)`` then returns an output for each.
    """

    def hoist(self, levels: Tensor, condition: Any) -> Callable[[int, Tensor], Tensor]:
        """`levels` float32 `[T]`, one per row of the table; returns ``f(row, x) -> output``.

        In a ragged run `[T, B]`, one per row and sample.
        """
        ...


def _bind_all(
    model, plain: Callable, schedule: Schedule, conditions: list, batch: int
) -> Callable[[int, Tensor], Sequence[Tensor]]:
    """``f(iteration, x)``: an output for each condition."""
    if hasattr(model, "hoist_guided") and _hoists(model, schedule):
        return model.hoist_guided(schedule.buffers.level, conditions)
    calls = [_bind(model, plain, schedule, condition, batch) for condition in conditions]
    if len(calls) == 1:
        return lambda iteration, x: [calls[0](iteration, x)]
    # A model may answer in the same memory each time: what is kept over its next call is copied.
    *others, last = calls
    return lambda iteration, x: [*(_copy(c(iteration, x)) for c in others), last(iteration, x)]


def _copy(out: Any) -> Any:
    return out.clone() if isinstance(out, Tensor) else out


def _hoists(model, schedule: Schedule) -> bool:
    return schedule.buffers.level.dim() == 1 or getattr(model, "hoists_ragged", False)


def _bind(
    model, plain: Callable, schedule: Schedule, condition: Any, batch: int
) -> Callable[[int, Tensor], Tensor]:
    """``f(iteration, x) -> output`` of a hoistable model; or of `plain`, the model as function."""
    if hasattr(model, "hoist") and _hoists(model, schedule):
        return model.hoist(schedule.buffers.level, condition)
    each = _levels(schedule, batch)
    return lambda iteration, x: plain(x, each[iteration], condition)


def _outside(function: Callable) -> Callable:
    """A caller's function as the loop calls it: on copies, which it may change and keep, outside of
    the loop's inference mode, so that inside `torch.enable_grad` it takes gradients of its own.

    The caller's own inference mode is kept, since buffers made in it may be written there alone. An
    output has unit stride, as the ops take it.
    """
    if torch.compiler.is_compiling():
        return lambda x, level, condition: function(x.clone(), level.clone(), condition)
    callers_mode = torch.is_inference_mode_enabled()

    def call(x: Tensor, level: Tensor, condition: Any) -> Any:
        # torch.inference_mode(False) and torch.no_grad(), which take 7 us more
        with torch._C._InferenceMode(callers_mode):
            torch._C._set_grad_enabled(False)
            out = function(x.clone(), level.clone(), condition)
        if not isinstance(out, Tensor):
            return out
        out = out.detach()
        return out if out.dim() == 0 or out.stride(-1) == 1 else out.contiguous()

    return call


def _levels(schedule: Schedule, batch: int) -> tuple[Tensor, ...]:
    """The levels of each iteration, float32 `[B]`."""
    levels = schedule.buffers.level
    if levels.dim() == 1:
        levels = levels[:, None].expand(len(levels), batch)
    return levels.unbind(0)


def _bind_energy(
    energy_fn: Callable, schedule: Schedule, condition: Any, batch: int
) -> Callable[[int, Tensor], Tensor]:
    each = _levels(schedule, batch)
    return lambda iteration, x: _energy(energy_fn(x, each[iteration], condition), x)


def _energy(found: Any, x: Tensor) -> Tensor:
    if not isinstance(found, Tensor) or found.shape != (len(x),):
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"energy_fn must return shape [{len(x)}], one per sample, got {shape}")
    return found.to(torch.float32, copy=True)


def run(
    table: Runnable,
    model: Any,
    x: Tensor,
    *,
    key: Tensor | Spans,
    stream: Tensor,
    condition: Any = None,
    uncond: Any = None,
    guidance: Tensor | None = None,
    uncond2: Any = None,
    guidance2: Tensor | None = None,
    noise_scale: Tensor | None = None,
    x0_clamp: float | None = None,
    noise: Tensor | PathNoise | None = None,
    energy_fn: Callable[[Tensor, Tensor, Any], Tensor] | None = None,
    decisions: list[Decision] | None = None,
    sums: Tensor | None = None,
) -> Tensor:
    """Run every row of `table` on `model`, from the initial state `x`.

    Eagerly it uses the in-place ops within `torch.inference_mode`; under `torch.compile` the
    functional ones. A function is called outside that mode, with gradients off, on copies of its
    own of the state and the level. Rows that call no model cost no call. Noise draws count rows
    from 0.

    Args:
        table: from :func:`ardiff.solver`, or its ``table.to(device)``; a
            :class:`~ardiff.tables.ragged.RaggedTable` gives each sample its own, a
            :class:`~ardiff.loop.ladder.Ladder` its own step size.
        model: ``model(x, level, condition) -> output`` with x `[B, d]` and level float32 `[B]`, or
            an object with ``hoist`` (:class:`HoistableModel`), which is given the state itself and
            must not keep or change it. The output is `[B, d]` float32, float16 or bfloat16, or
            `[B, 2 d]` for a table of learned-range variance, see
            `ardiff_kernels.ops.diffusion_step`.
        x: `[B, d]` float32 (bfloat16 too for tables of ``diffusion`` rows alone); not changed. See
            :func:`initial_state`.
        key: int64 `[1]`, the seed; or, eagerly, (slice of the samples, key) for each run of
            neighbours that share a seed. The model is called for all of them at once.
        stream: int64 `[B]`, sample_id * 2^20 + patch.
        condition: passed to the model as it is.
        uncond, guidance: with `guidance` (float32 `[B]` or `[1]`) the model is called a second time
            a row with `uncond` as the condition, and u + w (c - u) is used.
        uncond2, guidance2: a third call, and u2 + w2 (u - u2) + w (c - u) is used.
        noise_scale: float32 `[B]` or `[1]`, the temperature of the step noise.
        x0_clamp: positive bound on the data prediction, for tables of ``diffusion`` rows alone.
        noise: float32 `[T, B, d]`, normals of each row in place of the addressed ones, for tables
            of ``diffusion`` rows alone; or the :class:`~ardiff.loop.path_noise.PathNoise` of the
            table, whose increments are made row by row.
        energy_fn: ``energy_fn(x, level, condition) -> [B]``, -log p up to a constant of the level,
            for tables whose accept rows compare energies.
        decisions: a list to which each accept row's :class:`Decision` is appended.
        sums: float32 `[T, B]`, T the rows; written: the sum of each sample's state after each row,
            see :mod:`ardiff.loop.divergence`.

    Returns:
        The final state, a fresh tensor like `x`.

    Raises:
        ValueError, TypeError: a model output that does not fit the state, guidance of the wrong
            arity, a table that needs `energy_fn`.
        RuntimeError: tensors that do not fit the ops.

    Example:
        >>> import ardiff
        >>> from ardiff.loop.run import run
        >>> from ardiff.noise import initial_state, make_key, make_stream
        >>> table = ardiff.solver("ddpm", path="ou", prediction="score", steps=8)
        >>> key, stream = make_key(0, "cpu"), make_stream(None, 3, 0, "cpu")
        >>> x = initial_state(table, key, stream, d=2)
        >>> run(table, lambda x, level, condition: -x, x, key=key, stream=stream).shape
        torch.Size([3, 2])
    """
    compiling = torch.compiler.is_compiling()
    schedule = make_schedule(table, x)
    check_x0_clamp(x0_clamp, schedule)
    check_noise(noise, schedule, x)
    guided = Guidance.of(uncond, guidance, uncond2, guidance2)
    if schedule.energy and energy_fn is None:
        raise ValueError("this table accepts by energies: pass energy_fn")
    plain, energy_fn = _outside(model), energy_fn and _outside(energy_fn)
    mode = contextlib.nullcontext() if compiling else torch.inference_mode()
    with mode:
        options = {"noise_scale": noise_scale}
        options |= {} if x0_clamp is None else {"x0_clamp": float(x0_clamp)}
        energy = _bind_energy(energy_fn, schedule, condition, len(x)) if schedule.energy else None
        rows = Rows(
            schedule, x.clone(memory_format=torch.contiguous_format), key=key, stream=stream,
            in_place=not compiling, options=options, weights=guided.weights, energy=energy,
            ladder=table if isinstance(table, Ladder) else None, decisions=decisions,
        )  # fmt: skip
        call = _bind_all(model, plain, schedule, [condition, *guided.conditions], len(x))
        kept = None if sums is None else sums.unbind(0)
        while not rows.ended:
            if rows.calls_model:
                first, outs = rows.state.first_call, list(call(rows.index, rows.query()))
                if first:
                    for out in outs:
                        check_output(out, x, schedule.learned_range)
                rows.take(outs)
            rows.execute(**_normals(noise, rows))
            if kept is not None:
                torch.sum(rows.x, 1, dtype=torch.float32, out=kept[rows.index - 1])
    return rows.x if compiling else rows.x.clone()


def _normals(noise: Tensor | PathNoise | None, rows: Rows) -> dict[str, Tensor]:
    """The normals of the next row, where they are not the addressed ones."""
    if isinstance(noise, PathNoise):
        found = noise.normals(rows.index, rows.spans or rows.key, rows.stream, rows.x.shape[1])
    else:
        found = None if noise is None else noise[rows.index]
    return {} if found is None else {"noise": found}


def make_schedule(table: Runnable, x: Tensor) -> Schedule:
    """What the loop does for `x`, with its tensors on the device of `x`."""
    if isinstance(table, Schedule):
        return table
    if isinstance(table, StepTable):
        table = table.to(x.device)
    if isinstance(table, DeviceTable):
        return uniform(table)
    if len(table.index) != len(x):
        raise ValueError(
            f"the table's index must name a table for each of {len(x)} samples, got "
            f"{len(table.index)}"
        )
    return table.to(x.device)
