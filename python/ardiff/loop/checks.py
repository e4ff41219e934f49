"""What a run refuses before its first step, and at the model's first output."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..tables.plan import Schedule
from .path_noise import PathNoise

OUTPUT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def with_variance(shape: Sequence[int]) -> tuple[int, ...] | None:
    """The shape of an output that has a learned variance too: twice as long in dimension 1."""
    return (shape[0], 2 * shape[1], *shape[2:]) if len(shape) > 1 else None


def has_output_shape(out: Tensor, shape: tuple[int, ...], learned_range: bool) -> bool:
    """Whether `out` has the shape of a state, or with `learned_range` that with its variance."""
    found = out.shape
    return found == shape or (learned_range and found == with_variance(shape))


def check_output(
    out: Any,
    x: Tensor,
    learned_range: bool,
    dtypes: Sequence[torch.dtype] = OUTPUT_DTYPES,
) -> None:
    """Raises unless `out` is what a model returns for the state x `[B, ...]`."""
    if not isinstance(out, Tensor):
        raise TypeError(f"the model must return a tensor, got {type(out).__name__}")
    if not has_output_shape(out, x.shape, learned_range):
        double = with_variance(x.shape)
        doubled = tuple(out.shape) == double
        more = "; only a table with lv_min and lv_max takes a learned variance" if doubled else ""
        wide = f" (or {list(double)} with its variance)" if learned_range else ""
        raise ValueError(
            f"the model must return the shape of its input {list(x.shape)}{wide}, got "
            f"{list(out.shape)}{more}"
        )
    if out.dtype not in dtypes:
        *names, last = (str(dtype)[6:] for dtype in dtypes)
        raise ValueError(
            f"the model must return {', '.join(names)} or {last}, got {str(out.dtype)[6:]}"
        )
    if out.device != x.device:
        raise ValueError(f"the model returned a tensor on {out.device}, the state is on {x.device}")


def check_signature(name: str, function: Callable, call: str) -> None:
    """Raises TypeError unless `function` takes the arguments of `call`, such as ``f(x, level)``.

    A module is judged by its `forward`; what Python cannot tell the signature of passes.
    """
    arguments = call[call.index("(") + 1 : -1].split(", ")
    try:
        signature = inspect.signature(getattr(function, "forward", function))
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TypeError(
            f"{name} is called as {call}, which the one given, with the signature {signature}, "
            f"does not take: {error}"
        ) from None


def check_x0_clamp(x0_clamp: float | None, table: Any) -> None:
    """Raises unless None, or positive and for a table or schedule of diffusion rows alone."""
    if x0_clamp is None:
        return
    if isinstance(x0_clamp, bool) or not isinstance(x0_clamp, (int, float)) or not x0_clamp > 0:
        raise ValueError(f"x0_clamp must be a positive number, got {x0_clamp!r}")
    _need_diffusion("x0_clamp", table)


def check_noise(noise: Tensor | PathNoise | None, schedule: Schedule, x: Tensor) -> None:
    """Raises unless None, or normals `[T, B, d]` or a path for a schedule of diffusion rows
    alone."""
    if noise is None:
        return
    _need_diffusion("noise", schedule)
    if isinstance(noise, PathNoise):
        if len(noise.times) != len(schedule.plan):
            raise ValueError(
                f"the path's noise is of {len(noise.times)} rows, the table has "
                f"{len(schedule.plan)}: make it of the table that runs"
            )
        return
    shape = [len(schedule.plan), *x.shape]
    if list(noise.shape) != shape:
        raise ValueError(
            f"noise must have shape {shape}, normals for each row, got {list(noise.shape)}"
        )


def _need_diffusion(name: str, table: Any) -> None:
    if isinstance(table, Schedule):
        alone = not (table.kinetic or table.accepts)
    else:
        alone = set(table.op) == {"diffusion"}
    if not alone:
        raise ValueError(
            f"{name} needs a table of diffusion rows alone, without velocity and accept steps"
        )
