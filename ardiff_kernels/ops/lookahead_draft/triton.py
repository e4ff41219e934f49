"""Triton kernel of `lookahead_draft`: one launch, a program for a tile of one sample, which runs
the rows one after another with the tile's state in registers."""

import torch
import triton
import triton.language as tl

from ...dispatch.library import options as given_options
from .._shared.triton.common import at_sample, load_tile, store_tile
from .._shared.triton.launch import shared
from .._shared.triton.window import (
    PLAN,
    advance,
    entry,
    guessed_output,
    known_gain,
    known_tile,
    row_normals,
    run,
    table_rows,
    tile_width,
    window,
)
from ..diffusion_step.triton import clamped


# Strides change with the rows of a round; ALIGN says what divides them.
@triton.jit(do_not_specialize=[
    "x_stride", "memory_stride", "v_stride", "known_x_stride", "known_0_stride", "noise_stride",
    "states_stride", "velocities_stride", "drafts_stride", "T", "L", "K", "nd",
])  # fmt: skip
def lookahead_draft_kernel(
    x_ptr, memory_ptr, v_ptr, known_x_ptr, known_0_ptr, noise_ptr,
    states_ptr, velocities_ptr, drafts_ptr,
    coef_ptr, plan_ptr, row_ptr, count_ptr, draw_ptr, key_ptr, stream_ptr,
    op_ptr, gain_ptr, known_row_ptr, known_count_ptr, scale_ptr,
    x_stride, memory_stride, v_stride, known_x_stride, known_0_stride, noise_stride,
    states_stride, velocities_stride, drafts_stride,
    x0_clamp, T, L, K, nd, d,
    KINETIC: tl.constexpr, SECOND: tl.constexpr, DRAW_SHARED: tl.constexpr,
    SCALE_SHARED: tl.constexpr, BD: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    sample = (pid // nd).to(tl.int64)
    col = (pid % nd).to(tl.int64) * BD
    lane = tl.arange(0, BD)
    mask = lane < tl.multiple_of(d - col, ALIGN)
    row, n = window(row_ptr, count_ptr, sample, L, T)
    draw = at_sample(draw_ptr, sample, DRAW_SHARED) + row
    stream = tl.load(stream_ptr + sample)
    scale = tl.full((), 1.0, tl.float32)
    if scale_ptr is not None:
        scale = at_sample(scale_ptr, sample, SCALE_SHARED)

    x = load_tile(x_ptr, sample, x_stride, col, lane, mask, ALIGN)
    store_tile(states_ptr, x, sample, states_stride, col, lane, mask, ALIGN)
    memory = load_tile(memory_ptr, sample, memory_stride, col, lane, mask, ALIGN)
    if SECOND:
        second = load_tile(memory_ptr, sample, memory_stride, col + d, lane, mask, ALIGN)
    else:
        second = tl.zeros([BD], tl.float32)
    if KINETIC:
        v = load_tile(v_ptr, sample, v_stride, col, lane, mask, ALIGN)
        store_tile(velocities_ptr, v, sample, velocities_stride, col, lane, mask, ALIGN)
    else:
        v = tl.zeros([BD], tl.float32)

    # Of the row before; zeros where no row is known.
    place, some = entry(row - 1, known_row_ptr, known_count_ptr, sample, K)
    gain = known_gain(gain_ptr, sample, place, some, K)
    x_before = known_tile(
        known_x_ptr, sample, known_x_stride, place, some, d, col, lane, mask, ALIGN
    )
    guess = known_tile(known_0_ptr, sample, known_0_stride, place, some, d, col, lane, mask, ALIGN)

    for j in range(0, n):
        here = tl.full((), 0, tl.int64) + j
        c, p, kinetic = table_rows(coef_ptr, plan_ptr, op_ptr, row, j)
        gain = tl.minimum(gain * tl.load(p + PLAN.g_s), tl.load(p + PLAN.g_max))
        gain = tl.where(some, gain, tl.load(p + PLAN.g_0))
        moved = tl.fma(x_before, -tl.load(p + PLAN.r_x), x)
        moved = tl.fma(guess, -tl.load(p + PLAN.r_0), moved)
        guess = tl.fma(moved, gain, guess)
        place, found = entry(row + j, known_row_ptr, known_count_ptr, sample, K)
        if found:
            gain = known_gain(gain_ptr, sample, place, found, K)
            at = known_tile(
                known_x_ptr, sample, known_x_stride, place, found, d, col, lane, mask, ALIGN
            )
            x0 = known_tile(
                known_0_ptr, sample, known_0_stride, place, found, d, col, lane, mask, ALIGN
            )
            guess = tl.fma(x - at, gain, x0)
        guess = clamped(guess, x0_clamp)
        x_before = x
        n1, n2 = row_normals(
            noise_ptr, noise_stride, key_ptr, stream, draw + j, kinetic, sample, here, d,
            col, lane, mask, KINETIC, BD, ALIGN,
        )  # fmt: skip
        x, v, memory, second = advance(
            c, kinetic, scale, x, v, guess, guessed_output(p, x, guess), memory, second, n1, n2,
            KINETIC, SECOND,
        )  # fmt: skip
        here = here * d + col
        store_tile(drafts_ptr, guess, sample, drafts_stride, here, lane, mask, ALIGN)
        store_tile(states_ptr, x, sample, states_stride, here + d, lane, mask, ALIGN)
        if KINETIC:
            store_tile(velocities_ptr, v, sample, velocities_stride, here + d, lane, mask, ALIGN)

    for j in range(n, L):
        here = (tl.full((), 0, tl.int64) + j) * d + col
        zero = tl.zeros([BD], tl.float32)
        store_tile(drafts_ptr, zero, sample, drafts_stride, here, lane, mask, ALIGN)
        store_tile(states_ptr, x, sample, states_stride, here + d, lane, mask, ALIGN)
        if KINETIC:
            store_tile(velocities_ptr, v, sample, velocities_stride, here + d, lane, mask, ALIGN)


def lookahead_draft(
    x: torch.Tensor,
    memory: torch.Tensor,
    coef: torch.Tensor,
    plan: torch.Tensor,
    row: torch.Tensor,
    count: torch.Tensor,
    draw: torch.Tensor,
    key: torch.Tensor,
    stream: torch.Tensor,
    rows: int,
    **options: torch.Tensor | float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    given = given_options("lookahead_draft", options)
    B, d = x.shape
    states, drafts = x.new_empty(B, rows + 1, d), x.new_empty(B, rows, d)
    velocities = x.new_empty(0) if given.v is None else x.new_empty(B, rows + 1, d)
    tensors = (
        x,
        memory,
        given.v,
        given.known_x,
        given.known_0,
        given.noise,
        states,
        None if given.v is None else velocities,
        drafts,
    )
    others = coef, plan, row, count, draw, key, stream, given.op, given.gain
    others += given.known_row, given.known_count, given.noise_scale
    entries = 0 if given.gain is None else given.gain.shape[1]
    cols = tile_width(d, 512, lookahead_draft_kernel)
    tiles = triton.cdiv(d, cols)
    scalars = given.x0_clamp, len(coef), rows, entries, tiles
    run(
        lookahead_draft_kernel, (B * tiles,), tensors, others, scalars, d, cols,
        KINETIC=given.op is not None, SECOND=memory.shape[1] != d, DRAW_SHARED=shared(draw),
        SCALE_SHARED=shared(given.noise_scale),
    )  # fmt: skip
    return states, velocities, drafts
