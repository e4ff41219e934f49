"""Triton kernel of `diffusion_step`: one launch per step, functional or in place.

A lane owns four neighbouring elements and one Philox quad, which gives exactly their four normals.
The state may be bfloat16: it is widened at the load and rounded once, at the store. Absent
optional tensors are compiled away.
"""

import torch
import triton
import triton.language as tl

from ...dispatch.library import options as given_options
from .._shared.triton.common import (
    at_sample,
    counter_word,
    guided_output,
    load_tile,
    one_normal,
    store_tile,
    table_row,
    term,
    tile,
)
from .._shared.triton.launch import launch, shared
from .._shared.triton.names import PURPOSE, columns
from . import COLUMNS

COLUMN = columns(COLUMNS)


@triton.jit
def clamped(x0, x0_clamp):
    """The data prediction within its bound, if it has one; NaN stays."""
    if x0_clamp is not None:
        # Eager Triton passes a Python float as float32, Inductor as float64.
        bound = tl.full([], x0_clamp, tl.float32)
        x0 = tl.where(x0 > bound, bound, tl.where(x0 < -bound, -bound, x0))
    return x0


@triton.jit
def data_prediction(c, x, out, x0_clamp):
    """p_x x + p_o out of the row at `c`, clamped."""
    x0 = term(tl.load(c + COLUMN.p_o), out, term(tl.load(c + COLUMN.p_x), x, 0.0))
    return clamped(x0, x0_clamp)


@triton.jit
def diffusion_update(c, x, x0, x0u, memory, origin, third, sd, n):
    """The new x and memory of the row at `c`, and whether the row moves the memory; `origin` is
    the second memory, or the memory without one. x0u and third may be None: no terms in them."""
    x_new = term(tl.load(c + COLUMN.x_x_lo), x, 0.0)
    x_new = term(tl.load(c + COLUMN.x_0), x0, x_new)
    if x0u is not None:
        x_new = term(tl.load(c + COLUMN.x_u), x0u, x_new)
    if third is not None:
        x_new = term(tl.load(c + COLUMN.x_3), third, x_new)
    x_new = term(tl.load(c + COLUMN.x_m), memory, x_new)
    x_new = term(tl.load(c + COLUMN.x_d), x - origin, x_new)
    x_new = tl.fma(n, sd, x_new)
    x_new = term(tl.load(c + COLUMN.x_x), x, x_new)
    m_x = tl.load(c + COLUMN.m_x)
    m_x_lo = tl.load(c + COLUMN.m_x_lo)
    m_0 = tl.load(c + COLUMN.m_0)
    keep = (m_x == 0.0) & (m_x_lo == 0.0) & (m_0 == 0.0)
    memory_new = term(m_0, x0, term(m_x_lo, x, 0.0))
    if x0u is not None:
        m_u = tl.load(c + COLUMN.m_u)
        keep = keep & (m_u == 0.0)
        memory_new = term(m_u, x0u, memory_new)
    return x_new, term(m_x, x, memory_new), keep == 0


@triton.jit
def second_update(c, x, memory, second):
    """The new second memory of the row at `c`, from the old state, and whether the row moves it."""
    s_x = tl.load(c + COLUMN.s_x)
    s_m = tl.load(c + COLUMN.s_m)
    s_2 = tl.load(c + COLUMN.s_2)
    moves = (s_x != 0.0) | (s_m != 0.0) | (s_2 != 0.0)
    return term(s_x, x, term(s_m, memory, term(s_2, second, 0.0))), moves


@triton.jit
def third_update(c, second):
    """The new third memory of the row at `c`, from the old second, and whether the row moves it."""
    t_2 = tl.load(c + COLUMN.t_2)
    return term(t_2, second, 0.0), t_2 != 0.0


@triton.jit
def store_memory(
    ptr, old, new, moves, sample, stride, col, lane, mask, ALIGN: tl.constexpr,
    IN_PLACE: tl.constexpr,
):  # fmt: skip
    """Store a memory that the row moves; one that stays only where it is not in its place."""
    if IN_PLACE:
        mask = mask & moves
    store_tile(ptr, tl.where(moves, new, old), sample, stride, col, lane, mask, ALIGN)


@triton.jit
def diffusion_step_kernel(
    x_ptr, out_ptr, memory_ptr, x_new_ptr, memory_new_ptr, x0_ptr, z_model_ptr,
    uncond_ptr, uncond2_ptr, noise_ptr,
    coef_ptr, row_ptr, draw_ptr, key_ptr, stream_ptr, guidance_ptr, guidance2_ptr, scale_ptr,
    x_stride, out_stride, memory_stride, x_new_stride, memory_new_stride, x0_stride,
    z_model_stride, uncond_stride, uncond2_stride, noise_stride,
    x0_clamp, T, B, d, nd,
    LEARNED: tl.constexpr, MEMORIES: tl.constexpr, IN_PLACE: tl.constexpr,
    ROW_SHARED: tl.constexpr, DRAW_SHARED: tl.constexpr, GUIDANCE_SHARED: tl.constexpr,
    GUIDANCE2_SHARED: tl.constexpr, SCALE_SHARED: tl.constexpr,
    BR: tl.constexpr, BD: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    sample, col, lane, mask = tile(B, d, nd, BR, BD, ALIGN)
    x = load_tile(x_ptr, sample, x_stride, col, lane, mask, ALIGN)
    memory = load_tile(memory_ptr, sample, memory_stride, col, lane, mask, ALIGN)
    if MEMORIES > 1:
        origin = load_tile(memory_ptr, sample, memory_stride, col + d, lane, mask, ALIGN)
    else:
        origin = memory
    if MEMORIES == 3:
        third = load_tile(memory_ptr, sample, memory_stride, col + 2 * d, lane, mask, ALIGN)
    else:
        third = None
    out = guided_output(
        out_ptr, uncond_ptr, uncond2_ptr, guidance_ptr, guidance2_ptr,
        out_stride, uncond_stride, uncond2_stride, sample, col, lane, mask, ALIGN,
        GUIDANCE_SHARED, GUIDANCE2_SHARED,
    )  # fmt: skip

    row = at_sample(row_ptr, sample, ROW_SHARED)
    c, live = table_row(coef_ptr, row, T)
    x_n = tl.load(c + COLUMN.x_n)
    sd = x_n
    if LEARNED:
        lv_min = tl.load(c + COLUMN.lv_min)
        lv_max = tl.load(c + COLUMN.lv_max)
        r = load_tile(out_ptr, sample, out_stride, col + d, lane, mask, ALIGN)
        log_variance = tl.fma(0.5 * (r + 1.0), lv_max - lv_min, lv_min)
        sd = tl.where(x_n != 0.0, tl.exp(0.5 * log_variance), 0.0)
    if scale_ptr is not None:
        sd = sd * at_sample(scale_ptr, sample, SCALE_SHARED)
    if noise_ptr is not None:
        n = load_tile(noise_ptr, sample, noise_stride, col, lane, mask, ALIGN)
        n = tl.where(sd != 0.0, n, 0.0)
    else:
        c1 = counter_word(at_sample(draw_ptr, sample, DRAW_SHARED), PURPOSE.STEP_NOISE)
        n = one_normal(col, c1, key_ptr, tl.load(stream_ptr + sample), BR, BD)

    x0 = data_prediction(c, x, out, x0_clamp)
    x0u = x0
    if uncond_ptr is not None:
        uncond = load_tile(uncond_ptr, sample, uncond_stride, col, lane, mask, ALIGN)
        x0u = data_prediction(c, x, uncond, x0_clamp)
    x_new, memory_new, moves = diffusion_update(c, x, x0, x0u, memory, origin, third, sd, n)

    x_new = tl.where(live, x_new, x)
    store_tile(x_new_ptr, x_new, sample, x_new_stride, col, lane, mask, ALIGN)
    store_memory(
        memory_new_ptr, memory, memory_new, live & moves,
        sample, memory_new_stride, col, lane, mask, ALIGN, IN_PLACE,
    )  # fmt: skip
    if MEMORIES > 1:
        second, moves = second_update(c, x, memory, origin)
        store_memory(
            memory_new_ptr, origin, second, live & moves,
            sample, memory_new_stride, col + d, lane, mask, ALIGN, IN_PLACE,
        )  # fmt: skip
    if MEMORIES == 3:
        third_new, moves = third_update(c, origin)
        store_memory(
            memory_new_ptr, third, third_new, live & moves,
            sample, memory_new_stride, col + 2 * d, lane, mask, ALIGN, IN_PLACE,
        )  # fmt: skip
    if x0_ptr is not None:
        store_tile(x0_ptr, tl.where(live, x0, x), sample, x0_stride, col, lane, mask, ALIGN)
    if z_model_ptr is not None:
        store_tile(z_model_ptr, x_new, sample, z_model_stride, col, lane, mask, ALIGN)


def _step(
    state: tuple[torch.Tensor, torch.Tensor],
    new: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
    model_out: torch.Tensor,
    address: tuple[torch.Tensor, ...],
    **options: torch.Tensor | float | None,
) -> None:
    given = given_options("diffusion_step_", options)
    x, memory = state
    coef, row, draw, _, _ = address
    launch(
        diffusion_step_kernel,
        (
            x,
            model_out,
            memory,
            *new,
            given.z_model,
            given.uncond_out,
            given.uncond_out2,
            given.noise,
        ),
        (*address, given.guidance, given.guidance2, given.noise_scale),
        given.x0_clamp,
        coef.shape[0],
        LEARNED=model_out.shape[1] != x.shape[1],
        MEMORIES=memory.shape[1] // x.shape[1],
        IN_PLACE=new[0] is x,
        ROW_SHARED=shared(row),
        DRAW_SHARED=shared(draw),
        GUIDANCE_SHARED=shared(given.guidance),
        GUIDANCE2_SHARED=shared(given.guidance2),
        SCALE_SHARED=shared(given.noise_scale),
    )


def diffusion_step_(
    x: torch.Tensor,
    model_out: torch.Tensor,
    memory: torch.Tensor,
    coef: torch.Tensor,
    row: torch.Tensor,
    draw: torch.Tensor,
    key: torch.Tensor,
    stream: torch.Tensor,
    *,
    x0: torch.Tensor | None = None,
    **options: torch.Tensor | float | None,
) -> None:
    state = (x, memory)
    _step(state, (*state, x0), model_out, (coef, row, draw, key, stream), **options)


def diffusion_step(
    x: torch.Tensor,
    model_out: torch.Tensor,
    memory: torch.Tensor,
    coef: torch.Tensor,
    row: torch.Tensor,
    draw: torch.Tensor,
    key: torch.Tensor,
    stream: torch.Tensor,
    **options: torch.Tensor | float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    shapes = (x.shape, memory.shape, x.shape)
    new = tuple(torch.empty(shape, dtype=x.dtype, device=x.device) for shape in shapes)
    _step((x, memory), new, model_out, (coef, row, draw, key, stream), **options)
    return new
