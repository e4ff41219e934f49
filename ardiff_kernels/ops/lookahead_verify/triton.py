"""Triton kernel of `lookahead_verify`: one launch, two programs for each sample.

One decides which rows hold: of each row it sums over the tiles of the sample, and goes over them
again to write the memories, until a row does not hold. The other, which waits for no verdict, makes
the data predictions and the gains of all rows. The two memories that a row needs, of the drafts
and of the model, lie in global memory between the rows. Sums are those of `mala_accept`.
"""

import torch
import triton
import triton.language as tl

from ...dispatch.library import options as given_options
from .._shared.triton.common import at_sample, load_tile, store_tile, term
from .._shared.triton.launch import shared
from .._shared.triton.names import ROW_WIDTH
from .._shared.triton.window import (
    DIFFUSION,
    PLAN,
    ULD,
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
from ..mala_accept.triton import log_uniform, total

# Rules by which a row holds: `by law`, or by tolerance, of which 0 asks for equal bits.
LAW, NEAR, EQUAL = (tl.constexpr(rule) for rule in range(3))


@triton.jit
def data_prediction(
    states_ptr, drafts_ptr, outs_ptr, states_stride, drafts_stride, outs_stride,
    p, x0_clamp, sample, here, lane, mask, ALIGN: tl.constexpr,
):  # fmt: skip
    """The state of a row, its guess, its data prediction by the model, and the model's output; the
    last two are the guess's where the row does not call the model."""
    x = load_tile(states_ptr, sample, states_stride, here, lane, mask, ALIGN)
    guess = load_tile(drafts_ptr, sample, drafts_stride, here, lane, mask, ALIGN)
    calls = tl.load(p + PLAN.calls) != 0.0
    out = load_tile(outs_ptr, sample, outs_stride, here, lane, mask, ALIGN)
    x0 = term(tl.load(p + PLAN.p_o), out, term(tl.load(p + PLAN.p_x), x, 0.0))
    x0 = tl.where(calls, clamped(x0, x0_clamp), guess)
    return x, guess, x0, tl.where(calls, out, guessed_output(p, x, guess))


@triton.jit
def over(value, scale):
    """value / scale; 0 where the scale is."""
    return tl.where(scale != 0.0, value / tl.where(scale != 0.0, scale, 1.0), 0.0)


@triton.jit
def quotient(a, b):
    """a / b as float32 of float64 sums, b >= 0; NaN where both are 0 or one is. A division in
    float64 would be a call, around which registers spill."""
    exponent = b.to(tl.int64, bitcast=True) >> 52
    scale = ((2046 - exponent) << 52).to(tl.float64, bitcast=True)
    return (a * scale).to(tl.float32) / (b * scale).to(tl.float32)


@triton.jit
def differences(
    c, p, kinetic, scale, guess, x0, drafted, drafted_origin, memory, origin,
    KINETIC: tl.constexpr,
):  # fmt: skip
    """m' - m of the position, and delta of the two normals."""
    apart = guess - x0
    dx = term(tl.load(c + DIFFUSION.x_0), apart, 0.0)
    dx = term(tl.load(c + DIFFUSION.x_m), drafted - memory, dx)
    dx = term(-tl.load(c + DIFFUSION.x_d), drafted_origin - origin, dx)
    one = over(dx, tl.load(c + DIFFUSION.x_n) * scale)
    two = tl.zeros_like(dx)
    if KINETIC:
        if kinetic:
            out = apart * tl.load(p + PLAN.o_0)
            dx = term(tl.load(c + ULD.z_o), out, 0.0)
            dv = term(tl.load(c + ULD.v_o), out, 0.0)
            one = over(dv, tl.load(c + ULD.v_1) * scale)
            two = tl.fma(one, -tl.load(c + ULD.z_1) * scale, dx)
            two = over(two, tl.load(c + ULD.z_2) * scale)
    return dx, one, two


@triton.jit
def width(d, SECOND: tl.constexpr):
    if SECOND:
        return tl.full((), 2, tl.int64) * d
    else:
        return d


@triton.jit
def memories(
    memory_ptr, drafted_ptr, sample, col, d, lane, mask,
    SECOND: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """The memory by the model and by the drafts, each with the second one, or itself again."""
    stride = width(d, SECOND)
    memory = load_tile(memory_ptr, sample, stride, col, lane, mask, ALIGN)
    drafted = load_tile(drafted_ptr, sample, stride, col, lane, mask, ALIGN)
    if SECOND:
        second = load_tile(memory_ptr, sample, stride, col + d, lane, mask, ALIGN)
        drafted2 = load_tile(drafted_ptr, sample, stride, col + d, lane, mask, ALIGN)
    else:
        second = memory
        drafted2 = drafted
    return memory, second, drafted, drafted2


@triton.jit
def store_memory(
    ptr, memory, second, sample, col, d, lane, mask, SECOND: tl.constexpr,
    ALIGN: tl.constexpr,
):  # fmt: skip
    stride = width(d, SECOND)
    store_tile(ptr, memory, sample, stride, col, lane, mask, ALIGN)
    if SECOND:
        store_tile(ptr, second, sample, stride, col + d, lane, mask, ALIGN)


@triton.jit
def differs(
    states_ptr, velocities_ptr, states_stride, velocities_stride, c, kinetic, scale,
    x, x0, out, memory, second, n1, n2, sample, j, d, col, lane, mask,
    KINETIC: tl.constexpr, SECOND: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Where the row by the model does not give the drafted state and velocity (int32)."""
    here = j * d + col
    v = tl.zeros_like(x)
    if KINETIC:
        v = load_tile(velocities_ptr, sample, velocities_stride, here, lane, mask, ALIGN)
    x, v, memory, second = advance(
        c, kinetic, scale, x, v, x0, out, memory, second, n1, n2, KINETIC, SECOND
    )
    drafted = load_tile(states_ptr, sample, states_stride, here + d, lane, mask, ALIGN)
    differ = (x != drafted).to(tl.int32)
    if KINETIC:
        drafted = load_tile(velocities_ptr, sample, velocities_stride, here + d, lane, mask, ALIGN)
        differ |= (v != drafted).to(tl.int32)
    return tl.where(mask, differ, 0)


@triton.jit
def decide(
    states_ptr, drafts_ptr, outs_ptr, memory_ptr, velocities_ptr, noise_ptr, x_new_ptr, v_new_ptr,
    memory_new_ptr, drafted_ptr, coef_ptr, plan_ptr, draw_ptr, key_ptr, stream_ptr, op_ptr,
    scale_ptr, row_new_ptr, accepted_ptr,
    states_stride, drafts_stride, outs_stride, memory_stride, velocities_stride, noise_stride,
    x0_clamp, tolerance, sample, row, n, d,
    RULE: tl.constexpr, KINETIC: tl.constexpr, SECOND: tl.constexpr, DRAW_SHARED: tl.constexpr,
    SCALE_SHARED: tl.constexpr, ONE_TILE: tl.constexpr, BD: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Which rows of a sample hold, and its state at the new row."""
    lane = tl.arange(0, BD)
    zero = tl.full((), 0, tl.int64)
    draw = at_sample(draw_ptr, sample, DRAW_SHARED) + row
    stream = tl.load(stream_ptr + sample)
    scale = tl.full((), 1.0, tl.float32)
    if scale_ptr is not None:
        scale = at_sample(scale_ptr, sample, SCALE_SHARED)

    for start in range(0, BD if ONE_TILE else d, BD):
        col = zero + start
        mask = lane < tl.multiple_of(d - col, ALIGN)
        old = load_tile(memory_ptr, sample, memory_stride, col, lane, mask, ALIGN)
        old2 = old
        if SECOND:
            old2 = load_tile(memory_ptr, sample, memory_stride, col + d, lane, mask, ALIGN)
        store_memory(memory_new_ptr, old, old2, sample, col, d, lane, mask, SECOND, ALIGN)
        store_memory(drafted_ptr, old, old2, sample, col, d, lane, mask, SECOND, ALIGN)

    j = zero
    going = n > 0
    taken = n < 0
    factor = tl.full((), 0.0, tl.float32)  # of delta, by which the row that is taken is reflected
    while going:
        tl.debug_barrier()  # the memories that the program has written are read
        c, p, kinetic = table_rows(coef_ptr, plan_ptr, op_ptr, row, j)
        coupled = row != row
        if RULE == LAW:
            coupled = (tl.load(p + PLAN.couples) != 0.0) & (scale != 0.0)
        unequal = tl.zeros([BD], tl.int32)
        squares = tl.zeros([BD], tl.float64)
        products = tl.zeros([BD], tl.float64)
        for start in range(0, BD if ONE_TILE else d, BD):
            col = zero + start
            mask = lane < tl.multiple_of(d - col, ALIGN)
            if RULE != NEAR:
                n1, n2 = row_normals(
                    noise_ptr, noise_stride, key_ptr, stream, draw + j.to(tl.int32), kinetic,
                    sample, j, d, col, lane, mask, KINETIC, BD, ALIGN,
                )  # fmt: skip
            x, guess, x0, out = data_prediction(
                states_ptr, drafts_ptr, outs_ptr, states_stride, drafts_stride, outs_stride,
                p, x0_clamp, sample, j * d + col, lane, mask, ALIGN,
            )  # fmt: skip
            memory, second, drafted, drafted2 = memories(
                memory_new_ptr, drafted_ptr, sample, col, d, lane, mask, SECOND, ALIGN
            )
            if RULE != EQUAL:
                dx, one, two = differences(
                    c, p, kinetic, scale, guess, x0, drafted, drafted2, memory, second, KINETIC
                )
            if RULE == NEAR:
                far = tl.load(p + PLAN.unit) * dx
                squares += (far * far).to(tl.float64)
            if RULE == LAW:
                square = one * one
                product = n1 * one
                if KINETIC:
                    square = tl.fma(two, two, square)
                    product = tl.fma(n2, two, product)
                squares += square.to(tl.float64)
                products += product.to(tl.float64)
            if RULE != NEAR:
                if coupled == 0:
                    unequal |= differs(
                        states_ptr, velocities_ptr, states_stride, velocities_stride, c, kinetic,
                        scale, x, x0, out, memory, second, n1, n2, sample, j, d, col, lane, mask,
                        KINETIC, SECOND, ALIGN,
                    )  # fmt: skip

        holds = tl.max(unequal, 0) == 0
        if RULE == NEAR:
            limit = tl.full((), tolerance, tl.float64)
            holds = total(squares, 1) <= limit * limit * d
        if RULE == LAW:
            length = total(squares, 1)  # NaN where a term is not finite
            along = total(products, 1)
            log_u = log_uniform(key_ptr, stream, draw + j.to(tl.int32))
            stays = log_u <= (-along - 0.5 * length).to(tl.float32)
            holds = tl.where(coupled, stays, holds)
            factor = tl.where(length > 0.0, quotient(-2.0 * along, length), 0.0)

        if holds:
            for start in range(0, BD if ONE_TILE else d, BD):
                col = zero + start
                mask = lane < tl.multiple_of(d - col, ALIGN)
                x, guess, x0, out = data_prediction(
                    states_ptr, drafts_ptr, outs_ptr, states_stride, drafts_stride, outs_stride,
                    p, x0_clamp, sample, j * d + col, lane, mask, ALIGN,
                )  # fmt: skip
                memory, second, drafted, drafted2 = memories(
                    memory_new_ptr, drafted_ptr, sample, col, d, lane, mask, SECOND, ALIGN
                )
                none = tl.zeros([BD], tl.float32)
                x_new, v_new, memory, second = advance(
                    c, kinetic, scale, x, none, x0, none, memory, second, none, none, KINETIC,
                    SECOND,
                )  # fmt: skip
                x_draft, v_draft, drafted, drafted2 = advance(
                    c, kinetic, scale, x, none, guess, none, drafted, drafted2, none, none, KINETIC,
                    SECOND,
                )  # fmt: skip
                store_memory(
                    memory_new_ptr, memory, second, sample, col, d, lane, mask,
                    SECOND, ALIGN,
                )  # fmt: skip
                store_memory(
                    drafted_ptr, drafted, drafted2, sample, col, d, lane, mask,
                    SECOND, ALIGN,
                )  # fmt: skip
        j += holds.to(tl.int64)
        taken = holds == 0
        going = holds & (j < n)

    for start in range(0, BD if ONE_TILE else d, BD):
        col = zero + start
        mask = lane < tl.multiple_of(d - col, ALIGN)
        here = j * d + col
        v = tl.zeros([BD], tl.float32)
        if KINETIC:
            v = load_tile(velocities_ptr, sample, velocities_stride, here, lane, mask, ALIGN)
        if taken:
            c, p, kinetic = table_rows(coef_ptr, plan_ptr, op_ptr, row, j)
            coupled = (tl.load(p + PLAN.couples) != 0.0) & (scale != 0.0)
            x, guess, x0, out = data_prediction(
                states_ptr, drafts_ptr, outs_ptr, states_stride, drafts_stride, outs_stride,
                p, x0_clamp, sample, here, lane, mask, ALIGN,
            )  # fmt: skip
            memory, second, drafted, drafted2 = memories(
                memory_new_ptr, drafted_ptr, sample, col, d, lane, mask, SECOND, ALIGN,
            )  # fmt: skip
            n1, n2 = row_normals(
                noise_ptr, noise_stride, key_ptr, stream, draw + j.to(tl.int32), kinetic,
                sample, j, d, col, lane, mask, KINETIC, BD, ALIGN,
            )  # fmt: skip
            if RULE == LAW:
                dx, one, two = differences(
                    c, p, kinetic, scale, guess, x0, drafted, drafted2, memory, second, KINETIC
                )
                n1 = tl.where(coupled, tl.fma(one, factor, n1), n1)
                if KINETIC:
                    n2 = tl.where(coupled, tl.fma(two, factor, n2), n2)
            x, v, memory, second = advance(
                c, kinetic, scale, x, v, x0, out, memory, second, n1, n2, KINETIC, SECOND
            )
            store_memory(
                memory_new_ptr, memory, second, sample, col, d, lane, mask,
                SECOND, ALIGN,
            )  # fmt: skip
        else:
            x = load_tile(states_ptr, sample, states_stride, here, lane, mask, ALIGN)
        store_tile(x_new_ptr, x, sample, d, col, lane, mask, ALIGN)
        if KINETIC:
            store_tile(v_new_ptr, v, sample, d, col, lane, mask, ALIGN)
    accepted = j.to(tl.int32)
    tl.store(accepted_ptr + sample, accepted)
    tl.store(row_new_ptr + sample, row + accepted + taken.to(tl.int32))


@triton.jit
def estimate(
    states_ptr, drafts_ptr, outs_ptr, known_x_ptr, known_0_ptr, x0_ptr,
    plan_ptr, gain_ptr, known_row_ptr, known_count_ptr, gain_new_ptr,
    states_stride, drafts_stride, outs_stride, known_x_stride, known_0_stride,
    x0_clamp, sample, row, n, L, K, d,
    ONE_TILE: tl.constexpr, BD: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """The data predictions and the gains of a sample's rows."""
    lane = tl.arange(0, BD)
    zero = tl.full((), 0, tl.int64)
    # Of the row before; zeros where no row is known.
    place, some = entry(row - 1, known_row_ptr, known_count_ptr, sample, K)
    gain = known_gain(gain_ptr, sample, place, some, K)
    for step in range(0, n):
        j = zero + step
        p = plan_ptr + (row + j) * ROW_WIDTH
        known, found = entry(row + step, known_row_ptr, known_count_ptr, sample, K)
        squares = tl.zeros([BD], tl.float64)
        products = tl.zeros([BD], tl.float64)
        for start in range(0, BD if ONE_TILE else d, BD):
            col = zero + start
            mask = lane < tl.multiple_of(d - col, ALIGN)
            here = j * d + col
            x, guess, x0, out = data_prediction(
                states_ptr, drafts_ptr, outs_ptr, states_stride, drafts_stride, outs_stride,
                p, x0_clamp, sample, here, lane, mask, ALIGN,
            )  # fmt: skip
            store_tile(x0_ptr, x0, sample, (zero + L) * d, here, lane, mask, ALIGN)
            if found:
                at = known_tile(
                    known_x_ptr, sample, known_x_stride, known, found, d, col, lane, mask, ALIGN
                )
                dx = x - at
                d0 = x0 - known_tile(
                    known_0_ptr, sample, known_0_stride, known, found, d, col, lane, mask, ALIGN
                )
            else:
                if step == 0:
                    at = known_tile(
                        known_x_ptr, sample, known_x_stride, place, some, d, col, lane, mask,
                        ALIGN,
                    )  # fmt: skip
                    before = known_tile(
                        known_0_ptr, sample, known_0_stride, place, some, d, col, lane, mask,
                        ALIGN,
                    )  # fmt: skip
                else:
                    at, guess, before, out = data_prediction(
                        states_ptr, drafts_ptr, outs_ptr, states_stride, drafts_stride,
                        outs_stride, p - ROW_WIDTH, x0_clamp, sample, here - d, lane, mask,
                        ALIGN,
                    )  # fmt: skip
                dx = tl.fma(at, -tl.load(p + PLAN.r_x), x)
                dx = tl.fma(before, -tl.load(p + PLAN.r_0), dx)
                d0 = x0 - before
            squares += (dx * dx).to(tl.float64)
            products += (dx * d0).to(tl.float64)
        most = tl.load(p + PLAN.g_max)
        kept = tl.where(some, tl.minimum(gain * tl.load(p + PLAN.g_s), most), tl.load(p + PLAN.g_0))
        kept = tl.where(found, known_gain(gain_ptr, sample, known, found, K), kept)
        gain = quotient(total(products, 1), total(squares, 1))
        measured = (found | some) & (tl.abs(gain) < float("inf"))
        gain = tl.where(measured, tl.minimum(tl.maximum(gain, 0.0), most), kept)
        tl.store(gain_new_ptr + sample * L + j, gain)
        some = some | (row == row)
    for step in range(n, L):
        j = zero + step
        tl.store(gain_new_ptr + sample * L + j, 0.0)
        for start in range(0, BD if ONE_TILE else d, BD):
            col = zero + start
            mask = lane < tl.multiple_of(d - col, ALIGN)
            none = tl.zeros([BD], tl.float32)
            store_tile(x0_ptr, none, sample, (zero + L) * d, j * d + col, lane, mask, ALIGN)


# Strides change with the rows of a round; ALIGN says what divides them.
@triton.jit(do_not_specialize=[
    "states_stride", "drafts_stride", "outs_stride", "memory_stride", "velocities_stride",
    "known_x_stride", "known_0_stride", "noise_stride", "T", "L", "K",
])  # fmt: skip
def lookahead_verify_kernel(
    states_ptr, drafts_ptr, outs_ptr, memory_ptr, velocities_ptr, known_x_ptr, known_0_ptr,
    noise_ptr,
    coef_ptr, plan_ptr, row_ptr, count_ptr, draw_ptr, key_ptr, stream_ptr,
    op_ptr, gain_ptr, known_row_ptr, known_count_ptr, scale_ptr,
    x_new_ptr, v_new_ptr, memory_new_ptr, drafted_ptr, x0_ptr, gain_new_ptr, row_new_ptr,
    accepted_ptr,
    states_stride, drafts_stride, outs_stride, memory_stride, velocities_stride, known_x_stride,
    known_0_stride, noise_stride,
    x0_clamp, tolerance, T, L, K, d,
    RULE: tl.constexpr, KINETIC: tl.constexpr, SECOND: tl.constexpr, DRAW_SHARED: tl.constexpr,
    SCALE_SHARED: tl.constexpr, ONE_TILE: tl.constexpr, BD: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0).to(tl.int64)
    row, n = window(row_ptr, count_ptr, sample, L, T)
    if tl.program_id(1) == 0:
        decide(
            states_ptr, drafts_ptr, outs_ptr, memory_ptr, velocities_ptr, noise_ptr,
            x_new_ptr, v_new_ptr, memory_new_ptr, drafted_ptr,
            coef_ptr, plan_ptr, draw_ptr, key_ptr, stream_ptr, op_ptr, scale_ptr,
            row_new_ptr, accepted_ptr,
            states_stride, drafts_stride, outs_stride, memory_stride, velocities_stride,
            noise_stride,
            x0_clamp, tolerance, sample, row, n, d,
            RULE, KINETIC, SECOND, DRAW_SHARED, SCALE_SHARED, ONE_TILE, BD, ALIGN,
        )  # fmt: skip
    else:
        estimate(
            states_ptr, drafts_ptr, outs_ptr, known_x_ptr, known_0_ptr, x0_ptr,
            plan_ptr, gain_ptr, known_row_ptr, known_count_ptr, gain_new_ptr,
            states_stride, drafts_stride, outs_stride, known_x_stride, known_0_stride,
            x0_clamp, sample, row, n, L, K, d, ONE_TILE, BD, ALIGN,
        )  # fmt: skip


def lookahead_verify(
    states: torch.Tensor,
    drafts: torch.Tensor,
    outs: torch.Tensor,
    memory: torch.Tensor,
    coef: torch.Tensor,
    plan: torch.Tensor,
    row: torch.Tensor,
    count: torch.Tensor,
    draw: torch.Tensor,
    key: torch.Tensor,
    stream: torch.Tensor,
    **options: torch.Tensor | float | None,
) -> tuple[torch.Tensor, ...]:
    given = given_options("lookahead_verify", options)
    B, L, d = drafts.shape
    kinetic = given.op is not None
    x, x0, gain = (drafts.new_empty(shape) for shape in ((B, d), (B, L, d), (B, L)))
    v = drafts.new_empty((B, d) if kinetic else 0)
    memory_new, drafted = (drafts.new_empty(memory.shape) for _ in range(2))
    row_new, accepted = (row.new_empty(B) for _ in range(2))
    tensors = (
        states,
        drafts,
        outs,
        memory,
        given.velocities,
        given.known_x,
        given.known_0,
        given.noise,
    )
    others = coef, plan, row, count, draw, key, stream, given.op, given.gain
    others += given.known_row, given.known_count, given.noise_scale
    others += x, v if kinetic else None, memory_new, drafted, x0, gain, row_new, accepted
    entries = 0 if given.gain is None else given.gain.shape[1]
    rule = LAW if given.tolerance is None else NEAR if given.tolerance else EQUAL
    scalars = given.x0_clamp, given.tolerance or None, len(coef), L, entries
    cols = tile_width(d, 512, lookahead_verify_kernel)
    run(
        lookahead_verify_kernel, (B, 2), tensors, others, scalars, d, cols,
        RULE=rule.value, KINETIC=kinetic, SECOND=memory.shape[1] != d, DRAW_SHARED=shared(draw),
        SCALE_SHARED=shared(given.noise_scale), ONE_TILE=d <= cols,
    )  # fmt: skip
    return x, v, memory_new, x0, gain, row_new, accepted
