"""A token of a diffusion head whose steps are one op, `head_loop`: on CUDA one launch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import ardiff_kernels
from ardiff_kernels import ops

from .hoisting import Modulations, numbers
from .run import Runnable
from .schedule import Schedule
from .table import DeviceTable, StepTable

MOST_ROWS = 64  # tokens times ways; above, the launch reads the weights once for each 8 rows
_KINDS = ("diffusion", "uld")


def unsuitable(table: Runnable, schedule: Schedule, x: Tensor, ways: int) -> str:
    """Why `head_loop` cannot run the table, or should not; empty if it is the way to run it."""
    if torch.compiler.is_compiling() or not x.is_cuda:
        return "head_loop gains nothing where steps are no launches"
    if ardiff_kernels.chosen_backend("head_loop_", "cuda") != "cuda":
        return "head_loop is one launch with the CUDA kernels alone"
    if x.dtype != torch.float32 or ways * len(x) > MOST_ROWS:
        return f"head_loop is for float32 and at most {MOST_ROWS} rows"
    return unsuitable_table(table, schedule)


def unsuitable_table(table: Runnable, schedule: Schedule) -> str:
    """Why `head_loop` cannot run the rows of the table; empty if it can."""
    if not isinstance(table, (StepTable, DeviceTable)):
        return "samples have tables of their own"
    if schedule.second_memory or schedule.energy or any(table.midpoint):
        return "the table has a second memory, energies or midpoints"
    if schedule.learned_range:
        return "the table's variance may be the head's"
    if not all(table.calls_model) or any(op not in _KINDS for op in table.op):
        return "a row of the table makes no model call, or accepts"
    return ""


def run_token(
    schedule: Schedule,
    kinds: Sequence[str],
    sets: Modulations,
    x: Tensor,
    *,
    key: Tensor,
    stream: Tensor,
    guidance: Tensor | None = None,
    guidance2: Tensor | None = None,
    noise_scale: Tensor | None = None,
) -> Tensor:
    """All rows of a table on a head, as :func:`ardiff.run.run` executes them.

    Args:
        schedule: of a table that is not :func:`unsuitable_table`.
        kinds: the op of each row.
        sets: modulations of the rows, a condition a way.
        x: float32 `[N, d]`, the initial state; not changed.
        key, stream, guidance, guidance2, noise_scale: as of `run`.

    Returns:
        The final state, float32 `[N, d]`.
    """
    packed, buffers = sets.packed, schedule.buffers
    head = packed.head
    x = x.clone(memory_format=torch.contiguous_format)
    memory, v, op = torch.zeros_like(x), None, None
    if schedule.kinetic:
        v = torch.zeros_like(x)
        op = numbers(tuple(map(_KINDS.index, kinds)), x.device)
    for rows, held, places in sets.runs():
        ops.head_loop_(
            x, memory, held, places, packed.weights, packed.scales, buffers.coef[rows],
            buffers.draw[rows][:1], key, stream,
            norm=head.norm, mlp=head.mlp, depth=head.depth, eps=head.eps, v=v,
            op=None if op is None else op[rows], guidance=guidance, guidance2=guidance2,
            noise_scale=noise_scale, batch_invariant=sets.invariant,
        )  # fmt: skip
    return x
