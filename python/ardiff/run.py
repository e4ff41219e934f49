"""The one loop: it executes a StepTable, row after row, on a model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ardiff_kernels import ops

from .table import DeviceTable, StepTable

INITIAL_STATE = 1  # counter word c1 = 4 * draw + purpose, purpose 1 at draw 0


@runtime_checkable
class HoistableModel(Protocol):
    """A model that does what depends on level and condition once, before the loop."""

    def hoist(self, levels: Tensor, condition: Any) -> Callable[[int, Tensor], Tensor]:
        """`levels` float32 `[T]`, one a row of the table; returns ``f(row, x) -> output``."""
        ...


def initial_state(
    table: StepTable | DeviceTable, key: Tensor, stream: Tensor, d: int, dtype=torch.float32
) -> Tensor:
    """init_scale times the addressed normals of the initial state: `[len(stream), d]`."""
    normal = ops.philox_normal(key, INITIAL_STATE, stream, d)
    return (normal * table.init_scale).to(dtype)


def _bind(model, levels: Tensor, condition: Any, batch: int) -> Callable[[int, Tensor], Tensor]:
    """``f(row, x) -> output`` of a hoistable or a plain model."""
    if hasattr(model, "hoist"):
        return model.hoist(levels, condition)
    each = levels[:, None].expand(len(levels), batch).unbind(0)
    return lambda row, x: model(x, each[row], condition)


def _check_output(out: Any, x: Tensor) -> None:
    if not isinstance(out, Tensor):
        raise TypeError(f"the model must return a tensor, got {type(out).__name__}")
    if out.shape != x.shape:
        raise ValueError(
            f"the model must return the shape of its input {list(x.shape)}, got {list(out.shape)}"
        )
    if out.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(
            f"the model must return float32, float16 or bfloat16, got {str(out.dtype)[6:]}"
        )
    if out.device != x.device:
        raise ValueError(f"the model returned a tensor on {out.device}, the state is on {x.device}")


def run(
    table: StepTable | DeviceTable,
    model: Any,
    x: Tensor,
    *,
    key: Tensor,
    stream: Tensor,
    condition: Any = None,
    uncond: Any = None,
    guidance: Tensor | None = None,
    noise_scale: Tensor | None = None,
) -> Tensor:
    """Run every row of `table` on `model`, from the initial state `x`.

    Eagerly it uses the in-place ops within `torch.inference_mode`; under `torch.compile` the
    functional ones. Rows that call no model cost no call. Noise draws count rows from 0.

    Args:
        table: from :func:`ardiff.solver`, or its ``table.to(device)``.
        model: ``model(x, level, condition) -> output`` with x `[B, d]` and level float32 `[B]`, or
            an object with ``hoist`` (:class:`HoistableModel`). It must not keep or change x, and
            returns `[B, d]` float32, float16 or bfloat16.
        x: `[B, d]` float32 (bfloat16 too for tables without kinetic rows); not changed. See
            :func:`initial_state`.
        key: int64 `[1]`, the seed.
        stream: int64 `[B]`, sample_id * 2^20 + patch.
        condition: passed to the model as it is.
        uncond, guidance: with `guidance` (float32 `[B]` or `[1]`) the model is called a second time
            a row with `uncond` as the condition, and u + w (c - u) is used.
        noise_scale: float32 `[B]` or `[1]`, the temperature of the step noise.

    Returns:
        The final state, a fresh tensor like `x`.

    Raises:
        ValueError, TypeError: a model output that does not fit the state.
        RuntimeError: tensors that do not fit the ops.
    """
    compiling = torch.compiler.is_compiling()
    tensors = table.to(x.device) if isinstance(table, StepTable) else table
    mode = contextlib.nullcontext() if compiling else torch.inference_mode()
    with mode:
        state = _State(x, tensors)
        call = _bind(model, tensors.level, condition, len(x))
        call_uncond = None
        if guidance is not None:
            call_uncond = _bind(model, tensors.level, uncond, len(x))
        options: dict[str, Tensor | None] = {"noise_scale": noise_scale}
        places = tensors.row.split(1)
        out = None
        for i, calls_model in enumerate(tensors.calls_model):
            if calls_model:
                first, out = out is None, state.unaliased(call(i, state.x), compiling)
                if first:
                    _check_output(out, x)
                if call_uncond is not None:
                    options["guidance"] = guidance
                    options["uncond_out"] = state.unaliased(call_uncond(i, state.x), compiling)
            rows = (tensors.coef, places[i], places[i], key, stream)
            advance = state.step if compiling else state.step_
            advance(tensors.op[i], state.blank if out is None else out, rows, options)
    return state.x if compiling else state.x.clone()


class _State:
    """Position, and what the table's ops need beside it: memory (or anchor) and velocity."""

    def __init__(self, x: Tensor, tensors: DeviceTable) -> None:
        self.x = x.clone(memory_format=torch.contiguous_format)
        self.memory = torch.zeros_like(self.x)
        self.v = torch.zeros_like(self.x) if "uld" in tensors.op else None
        # stands for a model output before the first call
        self.blank = None if tensors.calls_model[0] else torch.zeros_like(self.x)

    def unaliased(self, out: Any, compiling: bool) -> Any:
        """`out`, copied if it is the state itself, which the in-place ops are about to write."""
        if compiling or not isinstance(out, Tensor):
            return out
        same = out.untyped_storage().data_ptr() == self.x.untyped_storage().data_ptr()
        return out.clone() if same else out

    def step(self, op: str, out: Tensor, rows: tuple, options: dict) -> None:
        if op == "uld":
            moved = ops.uld_step(self.x, self.v, out, self.memory, *rows, **options)
            self.x, self.v, self.memory = moved
        else:
            self.x, self.memory, _ = ops.diffusion_step(self.x, out, self.memory, *rows, **options)

    def step_(self, op: str, out: Tensor, rows: tuple, options: dict) -> None:
        if op == "uld":
            ops.uld_step_(self.x, self.v, out, self.memory, *rows, **options)
        else:
            ops.diffusion_step_(self.x, out, self.memory, *rows, **options)
