"""What a run refuses before its first step, and at the model's first output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..tables.plan import Schedule


def check_output(out: Any, x: Tensor, learned_range: bool) -> None:
    """Raises unless `out` is what a model returns for the state x `[B, d]`."""
    if not isinstance(out, Tensor):
        raise TypeError(f"the model must return a tensor, got {type(out).__name__}")
    double = (len(x), 2 * x.shape[1])
    if out.shape != x.shape and not (learned_range and out.shape == double):
        doubled = out.shape == double
        more = "; only a table with lv_min and lv_max takes a learned variance" if doubled else ""
        wide = f" (or {list(double)} with its variance)" if learned_range else ""
        raise ValueError(
            f"the model must return the shape of its input {list(x.shape)}{wide}, got "
            f"{list(out.shape)}{more}"
        )
    if out.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(
            f"the model must return float32, float16 or bfloat16, got {str(out.dtype)[6:]}"
        )
    if out.device != x.device:
        raise ValueError(f"the model returned a tensor on {out.device}, the state is on {x.device}")


def check_x0_clamp(x0_clamp: float | None, table: Any) -> None:
    """Raises unless None, or positive and for a table or schedule of diffusion rows alone."""
    if x0_clamp is None:
        return
    if isinstance(x0_clamp, bool) or not isinstance(x0_clamp, (int, float)) or not x0_clamp > 0:
        raise ValueError(f"x0_clamp must be a positive number, got {x0_clamp!r}")
    _need_diffusion("x0_clamp", table)


def check_noise(noise: Tensor | None, schedule: Schedule, x: Tensor) -> None:
    """Raises unless None, or normals `[T, B, d]` for a schedule of diffusion rows alone."""
    if noise is None:
        return
    _need_diffusion("noise", schedule)
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
