"""Triton kernel of `mala_accept`: one launch, a program for one long sample or several short ones.

A program walks its samples tile by tile, sums, decides, and walks them again to write the selected
rows. Sums are float64 a lane; the lanes are added as integers, where the order does not matter:
that of `tl.sum` is the layout's, which the alignment of the tensors changes.
"""

from contextlib import nullcontext

import torch
import triton
import triton.language as tl

from ...dispatch.library import options as given_options
from .._shared.triton.common import (
    counter_word,
    load_tile,
    low_high,
    neg2log,
    offset,
    philox4,
    table_row,
    term,
)
from .._shared.triton.launch import alignment, shared
from .._shared.triton.names import PURPOSE, columns
from . import COLUMNS

COLUMN = columns(COLUMNS)


@triton.jit
def total(t, BR: tl.constexpr):
    """Exact sum of each row of a float64 tile, rounded once: a scalar or `[BR, 1]`.

    Values are multiples of 2^-44 of the row's largest (towards zero), summed as integers: no order.
    """
    AXIS: tl.constexpr = 0 if BR == 1 else 1
    KEEP: tl.constexpr = BR > 1
    finite = tl.abs(t) < float("inf")
    t = tl.where(finite, t, 0.0)
    largest = tl.max(tl.abs(t), AXIS, keep_dims=KEEP)
    exponent = tl.maximum(largest.to(tl.int64, bitcast=True) >> 52, 64)
    scale = ((2090 - exponent) << 52).to(tl.float64, bitcast=True)
    inverse = ((exponent - 44) << 52).to(tl.float64, bitcast=True)
    result = tl.sum((t * scale).to(tl.int64), AXIS, keep_dims=KEEP).to(tl.float64) * inverse
    wrong = tl.max((finite == 0).to(tl.int32), AXIS, keep_dims=KEEP)
    return tl.where(wrong != 0, float("nan"), result)


@triton.jit
def samples(B, BR: tl.constexpr, BD: tl.constexpr):
    """This program's samples (int64), which of them are present, the lanes, and zeros of a tile.

    What belongs to a sample is a scalar when BR is 1, else `[BR, 1]`. Rows past B repeat the last.
    """
    first = tl.program_id(0).to(tl.int64) * BR
    lane = tl.arange(0, BD)
    if BR == 1:
        return first, first < B, lane, tl.zeros([BD], tl.float64)
    else:
        sample = (first + tl.arange(0, BR))[:, None]
        zeros = tl.zeros([BR, BD], tl.float64)
        return tl.minimum(sample, B - 1), sample < B, lane[None, :], zeros


@triton.jit
def each(ptr, sample, SHARED: tl.constexpr):
    """A per-sample argument, spread over the samples where it is shared."""
    if SHARED:
        return tl.load(ptr + sample * 0)
    else:
        return tl.load(ptr + sample)


@triton.jit
def log_uniform(key_ptr, stream, draw):
    """log of the accept uniform: word 0 of quad 0 at its purpose."""
    k0, k1 = low_high(tl.load(key_ptr))
    s0, s1 = low_high(stream)
    zero = tl.zeros(stream.shape, tl.uint32)
    word, _, _, _ = philox4(zero, counter_word(draw, PURPOSE.ACCEPT_UNIFORM), s0, s1, k0, k1)
    return -0.5 * neg2log(word)


@triton.jit
def copy_tile(
    new_ptr, y_ptr, x_ptr, new_stride, y_stride, x_stride, sample, col, lane, mask_y, mask_x,
    NEGATE: tl.constexpr, IN_PLACE: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Write y where `mask_y`, x (negated: the momentum flip) where `mask_x`."""
    at_x = tl.load(x_ptr + offset(sample, x_stride, col, ALIGN) + lane, mask=mask_x)
    if NEGATE:
        at_x = -at_x
    target = new_ptr + offset(sample, new_stride, col, ALIGN) + lane
    if IN_PLACE:
        tl.store(target, at_x, mask=mask_x)
    else:
        at_y = tl.load(y_ptr + offset(sample, y_stride, col, ALIGN) + lane, mask=mask_y)
        tl.store(target, tl.where(mask_y, at_y, at_x), mask=mask_x | mask_y)


@triton.jit
def mala_accept_kernel(
    x_ptr, y_ptr, out_x_ptr, out_y_ptr, anchor_ptr, v_x_ptr, v_y_ptr, mid_ptr,
    x_new_ptr, out_new_ptr, v_new_ptr,
    coef_ptr, row_ptr, draw_ptr, key_ptr, stream_ptr,
    energy_x_ptr, energy_y_ptr, radius_ptr, energy_new_ptr, accepted_ptr, log_alpha_ptr,
    x_stride, y_stride, out_x_stride, out_y_stride, anchor_stride, v_x_stride, v_y_stride,
    mid_stride, x_new_stride, out_new_stride, v_new_stride,
    T, B, d,
    IN_PLACE: tl.constexpr,
    ROW_SHARED: tl.constexpr, DRAW_SHARED: tl.constexpr, RADIUS_SHARED: tl.constexpr,
    ONE_TILE: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    sample, present, lane, sums = samples(B, BR, BD)
    row = each(row_ptr, sample, ROW_SHARED)
    c, live = table_row(coef_ptr, row, T)
    g_z = tl.load(c + COLUMN.g_z)
    g_d = tl.load(c + COLUMN.g_d)
    g_o = tl.load(c + COLUMN.g_o)
    s_o = tl.load(c + COLUMN.s_o)
    c_g = tl.load(c + COLUMN.c_g)
    c_d = tl.load(c + COLUMN.c_d)
    uses_gradient = (c_g != 0.0) | (c_d != 0.0)

    delta2 = sums
    y2 = sums
    for start in range(0, BD if ONE_TILE else d, BD):
        col = tl.full((), 0, tl.int64) + start
        mask = present & (lane < tl.multiple_of(d - col, ALIGN))
        x = load_tile(x_ptr, sample, x_stride, col, lane, mask, ALIGN)
        y = load_tile(y_ptr, sample, y_stride, col, lane, mask, ALIGN)
        out_x = load_tile(out_x_ptr, sample, out_x_stride, col, lane, mask, ALIGN)
        out_y = load_tile(out_y_ptr, sample, out_y_stride, col, lane, mask, ALIGN)
        anchor = load_tile(anchor_ptr, sample, anchor_stride, col, lane, mask, ALIGN)
        delta = y - x
        g_x = term(g_o, out_x, term(g_d, x - anchor, term(g_z, x, 0.0)))
        g_y = term(g_o, out_y, term(g_d, y - anchor, term(g_z, y, 0.0)))
        factor = term(c_g, g_x - g_y, term(c_d, delta, 0.0))
        t = tl.where(uses_gradient, g_x + g_y, 0.0) * factor
        # NaN where y or out_y is NaN or infinite.
        t = tl.fma(y, 0.0, tl.fma(out_y, 0.0, t))
        if v_x_ptr is not None:
            v_x = load_tile(v_x_ptr, sample, v_x_stride, col, lane, mask, ALIGN)
            v_y = load_tile(v_y_ptr, sample, v_y_stride, col, lane, mask, ALIGN)
            t = term(0.5 * tl.load(c + COLUMN.c_v), (v_x - v_y) * (v_x + v_y), t)
        if mid_ptr is not None:
            mid = load_tile(mid_ptr, sample, mid_stride, col, lane, mask, ALIGN)
            t = term(0.6666666666666666 * s_o, delta * tl.fma(out_x + out_y, -0.5, mid), t)
        if energy_x_ptr is not None:
            t = term(-0.5 * tl.load(c + COLUMN.s_z), delta * (x + y), t)
            t = term(-0.5 * s_o, delta * (out_x + out_y), t)
        sums += t.to(tl.float64)
        delta2 += (delta * delta).to(tl.float64)
        y2 += (y * y).to(tl.float64)

    log_alpha = total(sums, BR)  # NaN where a term is not finite
    if energy_x_ptr is not None:
        energy_x = tl.load(energy_x_ptr + sample)
        energy_y = tl.load(energy_y_ptr + sample)
        log_alpha += energy_x.to(tl.float64) - energy_y.to(tl.float64)
    log_alpha = log_alpha.to(tl.float32)
    defined = log_alpha == log_alpha
    if energy_x_ptr is not None:
        defined &= tl.abs(energy_y) < float("inf")
    r2 = tl.load(c + COLUMN.r2).to(tl.float64)
    ball2 = tl.load(c + COLUMN.R2).to(tl.float64)
    if radius_ptr is not None:
        radius = each(radius_ptr, sample, RADIUS_SHARED).to(tl.float64)
        ball2 = radius * radius
    inside = (r2 <= 0.0) | (total(delta2, BR) <= r2)
    inside &= (ball2 <= 0.0) | (total(y2, BR) <= ball2)

    draw = each(draw_ptr, sample, DRAW_SHARED)
    log_u = log_uniform(key_ptr, tl.load(stream_ptr + sample), draw)
    accepted = live & defined & inside & (log_u < log_alpha)
    log_alpha = tl.where(live, tl.where(defined, log_alpha, float("-inf")), 0.0)
    tl.store(accepted_ptr + sample, accepted.to(accepted_ptr.dtype.element_ty), mask=present)
    tl.store(log_alpha_ptr + sample, log_alpha, mask=present)
    keep = accepted | (live == 0)
    if energy_x_ptr is not None:
        energy = tl.where(keep, energy_y, energy_x)
        tl.store(energy_new_ptr + sample, energy, mask=present)

    for start in range(0, BD if ONE_TILE else d, BD):
        col = tl.full((), 0, tl.int64) + start
        mask = present & (lane < tl.multiple_of(d - col, ALIGN))
        mask_y = mask & keep
        mask_x = mask & (keep == 0)
        copy_tile(x_new_ptr, y_ptr, x_ptr, x_new_stride, y_stride, x_stride, sample, col, lane,
                  mask_y, mask_x, False, IN_PLACE, ALIGN)  # fmt: skip
        copy_tile(out_new_ptr, out_y_ptr, out_x_ptr, out_new_stride, out_y_stride, out_x_stride,
                  sample, col, lane, mask_y, mask_x, False, IN_PLACE, ALIGN)  # fmt: skip
        if v_x_ptr is not None:
            copy_tile(v_new_ptr, v_y_ptr, v_x_ptr, v_new_stride, v_y_stride, v_x_stride, sample,
                      col, lane, mask_y, mask_x, True, IN_PLACE, ALIGN)  # fmt: skip


def tile_shape(d: int, interpreted: bool = False) -> tuple[int, int]:
    """Samples and elements of a tile; the elements, and so the order of the sums, by d alone.

    The interpreter pays by the program, so there a program is large.
    """
    cols = min(max(4, triton.next_power_of_2(d)), (1 << 17) if interpreted else 512)
    return max(1, (1 << 15 if interpreted else 512) // cols), cols


def _accept(
    args: tuple[torch.Tensor, ...],
    new: tuple[torch.Tensor | None, ...],
    **options: torch.Tensor | None,
) -> None:
    given = given_options("mala_accept", options)
    x, y, out_x, out_y, anchor, coef, row, draw, key, stream = args
    x_new, out_new, v_new, energy_new, accepted, log_alpha = new
    B, d = x.shape
    if B == 0:
        return
    tensors = (
        x,
        y,
        out_x,
        out_y,
        anchor,
        given.v_x,
        given.v_y,
        given.out_mid,
        x_new,
        out_new,
        v_new,
    )
    strides = [0 if t is None or B == 1 else t.stride(0) for t in tensors]
    rows, cols = tile_shape(d, not isinstance(mala_accept_kernel, triton.JITFunction))
    elsewhere = x.is_cuda and x.device.index != torch.cuda.current_device()
    with torch.cuda.device(x.device) if elsewhere else nullcontext():
        mala_accept_kernel[(triton.cdiv(B, rows),)](
            *tensors, coef, row, draw, key, stream,
            given.energy_x, given.energy_y, given.ball_radius, energy_new, accepted, log_alpha,
            *strides, coef.shape[0], B, d,
            IN_PLACE=x_new is y, ROW_SHARED=shared(row), DRAW_SHARED=shared(draw),
            RADIUS_SHARED=shared(given.ball_radius), ONE_TILE=d <= cols,
            BR=rows, BD=cols, ALIGN=alignment(d, strides),
            num_warps=max(1, rows * cols // 128),
        )  # fmt: skip


def mala_accept_(
    x: torch.Tensor,
    y: torch.Tensor,
    out_x: torch.Tensor,
    out_y: torch.Tensor,
    *address: torch.Tensor,
    accepted: torch.Tensor,
    log_alpha: torch.Tensor,
    **options: torch.Tensor | None,
) -> None:
    new = (y, out_y, options.get("v_y"), options.get("energy_y"), accepted, log_alpha)
    _accept((x, y, out_x, out_y, *address), new, **options)


def mala_accept(
    x: torch.Tensor,
    y: torch.Tensor,
    out_x: torch.Tensor,
    out_y: torch.Tensor,
    *address: torch.Tensor,
    **options: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    B, d = x.shape
    new = (
        empty(B, d),
        empty(B, d, dtype=out_x.dtype),
        empty(B, d) if options.get("v_x") is not None else empty(0),
        empty(B if options.get("energy_x") is not None else 0),
        empty(B, dtype=torch.bool),
        empty(B),
    )
    kernel_new = (*new[:2], *(t if t.numel() else None for t in new[2:4]), *new[4:])
    _accept((x, y, out_x, out_y, *address), kernel_new, **options)
    return new
