"""What the Triton kernels of `lookahead_draft` and `lookahead_verify` share: a window of rows of
one sample, what is known of a row from the last round, and one row on a data prediction.

A program has one sample, so all that belongs to it is a scalar and its rows may branch. The rows
are those of the step ops by their own functions: drafted states have the bits of the steps.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl

from ...diffusion_step.triton import COLUMN as DIFFUSION
from ...diffusion_step.triton import diffusion_update, second_update
from ...lookahead_draft import COLUMNS
from ...uld_step.triton import COLUMN as ULD
from ...uld_step.triton import uld_update
from .common import counter_word, load_tile, one_normal, term, two_normals
from .launch import alignment
from .names import PURPOSE, ROW_WIDTH, columns

PLAN = columns(COLUMNS)
_LANES = 64 if torch.version.hip else 32


@triton.jit
def window(row_ptr, count_ptr, sample, L, T):
    """The first row of the sample's window and n, its rows."""
    row = tl.load(row_ptr + sample)
    n = tl.minimum(tl.minimum(tl.load(count_ptr + sample), L), T - row)
    inside = (row >= 0) & (row < T)
    return row, tl.where(inside, tl.maximum(n, 0), 0)


@triton.jit
def entry(row, known_row_ptr, known_count_ptr, sample, K):
    """The place (int64) of a row among the sample's known ones, and whether it is there."""
    if known_row_ptr is not None:
        k = row - tl.load(known_row_ptr + sample)
        found = (k >= 0) & (k < tl.minimum(tl.load(known_count_ptr + sample), K))
        return tl.where(found, k, 0).to(tl.int64), found
    else:
        return tl.full((), 0, tl.int64), row != row


@triton.jit
def known_gain(gain_ptr, sample, place, found, K):
    """The gain of a known row, 0 of one that is not."""
    if gain_ptr is not None:
        return tl.load(gain_ptr + sample * K + place, mask=found, other=0.0)
    else:
        return tl.full((), 0.0, tl.float32)


@triton.jit
def known_tile(ptr, sample, stride, place, found, d, col, lane, mask, ALIGN: tl.constexpr):
    """A tile of a known row, zeros of one that is not."""
    if ptr is not None:
        return load_tile(ptr, sample, stride, place * d + col, lane, mask & found, ALIGN)
    else:
        return tl.zeros(mask.shape, tl.float32)


@triton.jit
def table_rows(coef_ptr, plan_ptr, op_ptr, row, j):
    """Where row j of the window begins in the table and in the plan, and whether it is a row of
    `uld_step`."""
    at = (row + j).to(tl.int64)
    kinetic = row != row
    if op_ptr is not None:
        kinetic = tl.load(op_ptr + at) != 0
    return coef_ptr + at * ROW_WIDTH, plan_ptr + at * ROW_WIDTH, kinetic


@triton.jit
def row_normals(
    noise_ptr, noise_stride, key_ptr, stream, draw, kinetic, sample, j, d, col, lane, mask,
    KINETIC: tl.constexpr, BD: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """The normals of row j: one of a `diffusion_step` row (twice), two of a `uld_step` row."""
    c1 = counter_word(draw, PURPOSE.STEP_NOISE)
    if noise_ptr is not None:
        n1 = load_tile(noise_ptr, sample, noise_stride, j * d + col, lane, mask, ALIGN)
        n2 = n1
    elif KINETIC:
        if kinetic:
            n1, n2 = two_normals(col, c1, key_ptr, stream, 1, BD)
        else:
            n1 = one_normal(col, c1, key_ptr, stream, 1, BD)
            n2 = n1
    else:
        n1 = one_normal(col, c1, key_ptr, stream, 1, BD)
        n2 = n1
    return n1, n2


@triton.jit
def guessed_output(p, x, guess):
    """The output of a `uld_step` row whose data prediction is the guess."""
    # The fused product keeps the compiler from fusing in one kernel and not in another.
    return term(-tl.load(p + PLAN.p_x), x, guess) * tl.load(p + PLAN.o_0)


@triton.jit
def advance(
    c, kinetic, scale, x, v, x0, out, memory, second, n1, n2,
    KINETIC: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    """New state, velocity, memory and second memory of a row whose data prediction is x0, and of
    `uld_step` whose output is `out`. Without a second memory `second` comes back as it was."""
    if KINETIC:
        if kinetic:
            z_1 = tl.load(c + ULD.z_1) * scale
            z_2 = tl.load(c + ULD.z_2) * scale
            v_1 = tl.load(c + ULD.v_1) * scale
            x, v, anchor, start = uld_update(c, x, v, out, memory, z_1, z_2, v_1, n1, n2, n1)
            memory = tl.where(start, anchor, memory)
        else:
            x, memory, second = _diffusion(c, scale, x, x0, memory, second, n1, SECOND)
    else:
        x, memory, second = _diffusion(c, scale, x, x0, memory, second, n1, SECOND)
    return x, v, memory, second


@triton.jit
def _diffusion(c, scale, x, x0, memory, second, n, SECOND: tl.constexpr):
    sd = tl.load(c + DIFFUSION.x_n) * scale
    n = tl.where(sd != 0.0, n, 0.0)
    if SECOND:
        origin = second
    else:
        origin = memory
    x_new, memory_new, moves = diffusion_update(c, x, x0, None, memory, origin, None, sd, n)
    if SECOND:
        second_new, second_moves = second_update(c, x, memory, second)
        second = tl.where(second_moves, second_new, second)
    return x_new, tl.where(moves, memory_new, memory), second


def tile_width(d: int, most: int, kernel: Any) -> int:
    """Elements of a tile, by d alone: at least four a lane of one warp, so that normals stay in
    their lanes. The interpreter pays by the operation, so there a tile is large."""
    if not isinstance(kernel, triton.JITFunction):
        return min(max(4, triton.next_power_of_2(d)), 1 << 17)
    return min(max(4 * _LANES, triton.next_power_of_2(d)), most)


def warps(cols: int) -> int:
    """Warps of a tile with four elements per lane."""
    return max(1, cols // (4 * _LANES))


def run(
    kernel: Any,
    grid: tuple[int, ...],
    tensors: Sequence[torch.Tensor | None],
    others: Sequence[torch.Tensor | None],
    scalars: Sequence[int | float | None],
    d: int,
    cols: int,
    **flags: bool | int,
) -> None:
    """Run `kernel` with these arguments: `tensors` of `[B, ...]`, contiguous inside a sample,
    `others`, the sample stride of each of `tensors`, `scalars`, d, then `flags` and the tile."""
    first = next(t for t in tensors if t is not None)
    if len(first) == 0:
        return
    strides = [0 if t is None or len(first) == 1 else t.stride(0) for t in tensors]
    elsewhere = first.is_cuda and first.device.index != torch.cuda.current_device()
    with torch.cuda.device(first.device) if elsewhere else nullcontext():
        kernel[grid](
            *tensors, *others, *strides, *scalars, d, **flags, BD=cols,
            ALIGN=alignment(d, strides), num_warps=warps(cols),
        )  # fmt: skip
