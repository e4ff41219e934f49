"""Triton kernel of `diffusion_step_backward`: one launch; absent gradients and results that are not
wanted are compiled away.

The state and the model outputs are read only where x0 is clamped or the variance learned, and the
normals of the step made again only for the latter.
"""

import torch
import triton
import triton.language as tl

from ...dispatch.library import options as given_options
from .._shared.triton.common import (
    at_sample,
    counter_word,
    gradient_tile,
    guided_output,
    load_tile,
    one_normal,
    store_output_gradients,
    store_wanted,
    table_row,
    term,
    tile,
)
from .._shared.triton.launch import fresh, launch, shared
from .._shared.triton.names import PURPOSE, columns
from ..diffusion_step import COLUMNS
from . import ALL, results

COLUMN = columns(COLUMNS)


@triton.jit
def diffusion_step_backward_kernel(
    x_ptr, grad_x_ptr, grad_memory_ptr, grad_x0_ptr, out_ptr, uncond_ptr, uncond2_ptr, noise_ptr,
    new_x_ptr, new_out_ptr, new_memory_ptr, new_uncond_ptr, new_uncond2_ptr, new_noise_ptr,
    coef_ptr, row_ptr, draw_ptr, key_ptr, stream_ptr, guidance_ptr, guidance2_ptr, scale_ptr,
    x_stride, grad_x_stride, grad_memory_stride, grad_x0_stride, out_stride, uncond_stride,
    uncond2_stride, noise_stride, new_x_stride, new_out_stride, new_memory_stride,
    new_uncond_stride, new_uncond2_stride, new_noise_stride,
    x0_clamp, T, B, d, nd,
    LEARNED: tl.constexpr, MEMORIES: tl.constexpr,
    ROW_SHARED: tl.constexpr, DRAW_SHARED: tl.constexpr, GUIDANCE_SHARED: tl.constexpr,
    GUIDANCE2_SHARED: tl.constexpr, SCALE_SHARED: tl.constexpr,
    BR: tl.constexpr, BD: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    sample, col, lane, mask = tile(B, d, nd, BR, BD, ALIGN)
    g_x = gradient_tile(grad_x_ptr, mask, sample, grad_x_stride, col, lane, mask, ALIGN)
    g_x0 = gradient_tile(grad_x0_ptr, mask, sample, grad_x0_stride, col, lane, mask, ALIGN)
    g_m = gradient_tile(grad_memory_ptr, mask, sample, grad_memory_stride, col, lane, mask, ALIGN)
    zero = tl.zeros(mask.shape, tl.float32)

    row = at_sample(row_ptr, sample, ROW_SHARED)
    c, live = table_row(coef_ptr, row, T)
    p_x = tl.load(c + COLUMN.p_x)
    p_o = tl.load(c + COLUMN.p_o)
    x_d = tl.load(c + COLUMN.x_d)
    x_n = tl.load(c + COLUMN.x_n)
    m_x = tl.load(c + COLUMN.m_x)
    m_x_lo = tl.load(c + COLUMN.m_x_lo)
    m_0 = tl.load(c + COLUMN.m_0)
    m_u = tl.load(c + COLUMN.m_u)
    g_0 = term(m_0, g_m, term(tl.load(c + COLUMN.x_0), g_x, g_x0))
    g_u = term(m_u, g_m, term(tl.load(c + COLUMN.x_u), g_x, 0.0))
    if uncond_ptr is None:
        g_0 += g_u
    if x0_clamp is not None:
        bound = tl.full([], x0_clamp, tl.float32)
        x = load_tile(x_ptr, sample, x_stride, col, lane, mask, ALIGN)
        out = guided_output(
            out_ptr, uncond_ptr, uncond2_ptr, guidance_ptr, guidance2_ptr,
            out_stride, uncond_stride, uncond2_stride, sample, col, lane, mask, ALIGN,
            GUIDANCE_SHARED, GUIDANCE2_SHARED,
        )  # fmt: skip
        x0 = term(p_o, out, term(p_x, x, 0.0))
        g_0 = tl.where((x0 >= -bound) & (x0 <= bound), g_0, 0.0)
        if uncond_ptr is not None:
            uncond = load_tile(uncond_ptr, sample, uncond_stride, col, lane, mask, ALIGN)
            x0 = term(p_o, uncond, term(p_x, x, 0.0))
            g_u = tl.where((x0 >= -bound) & (x0 <= bound), g_u, 0.0)

    sd = x_n
    if LEARNED:
        lv_min = tl.load(c + COLUMN.lv_min)
        lv_max = tl.load(c + COLUMN.lv_max)
        r = load_tile(out_ptr, sample, out_stride, col + d, lane, mask, ALIGN)
        log_variance = tl.fma(0.5 * (r + 1.0), lv_max - lv_min, lv_min)
        sd = tl.where(x_n != 0.0, tl.exp(0.5 * log_variance), 0.0)
    if scale_ptr is not None:
        sd = sd * at_sample(scale_ptr, sample, SCALE_SHARED)
    if LEARNED and new_out_ptr is not None:
        if noise_ptr is not None:
            n = load_tile(noise_ptr, sample, noise_stride, col, lane, mask, ALIGN)
        else:
            c1 = counter_word(at_sample(draw_ptr, sample, DRAW_SHARED), PURPOSE.STEP_NOISE)
            n = one_normal(col, c1, key_ptr, tl.load(stream_ptr + sample), BR, BD)
        g_r = term(sd, n, 0.0) * (0.25 * (lv_max - lv_min)) * g_x
        g_r = tl.where(live & (x_n != 0.0), g_r, zero)
        store_wanted(new_out_ptr, g_r, sample, new_out_stride, col + d, lane, mask, ALIGN)
    if LEARNED:
        store_wanted(new_uncond_ptr, zero, sample, new_uncond_stride, col + d, lane, mask, ALIGN)
        store_wanted(new_uncond2_ptr, zero, sample, new_uncond2_stride, col + d, lane, mask, ALIGN)

    new_x = term(m_x_lo, g_m, term(tl.load(c + COLUMN.x_x_lo), g_x, 0.0))
    origin = term(-x_d, g_x, 0.0)
    if MEMORIES > 1:
        g_m2 = gradient_tile(
            grad_memory_ptr, mask, sample, grad_memory_stride, col + d, lane, mask, ALIGN
        )
        s_x = tl.load(c + COLUMN.s_x)
        s_m = tl.load(c + COLUMN.s_m)
        s_2 = tl.load(c + COLUMN.s_2)
        new_x = term(s_x, g_m2, new_x)
        stays = (s_x == 0.0) & (s_m == 0.0) & (s_2 == 0.0)
        new_m2 = tl.where(stays, origin + g_m2, term(s_2, g_m2, origin))
        if MEMORIES == 3:
            g_m3 = gradient_tile(
                grad_memory_ptr, mask, sample, grad_memory_stride, col + 2 * d, lane, mask, ALIGN
            )
            t_2 = tl.load(c + COLUMN.t_2)
            new_m2 = term(t_2, g_m3, new_m2)
            new_m3 = term(tl.load(c + COLUMN.x_3), g_x, tl.where(t_2 == 0.0, g_m3, zero))
            new_m3 = tl.where(live, new_m3, g_m3)
            store_wanted(
                new_memory_ptr, new_m3, sample, new_memory_stride, col + 2 * d, lane, mask, ALIGN
            )
        new_m2 = tl.where(live, new_m2, g_m2)
        store_wanted(new_memory_ptr, new_m2, sample, new_memory_stride, col + d, lane, mask, ALIGN)
        new_m = term(s_m, g_m2, 0.0)
    else:
        new_m = origin
    if uncond_ptr is not None:
        new_x = term(p_x, g_u, new_x)
    new_x = term(p_x, g_0, new_x)
    new_x = term(x_d, g_x, new_x)
    new_x = term(m_x, g_m, new_x)
    new_x = term(tl.load(c + COLUMN.x_x), g_x, new_x)
    new_m = term(tl.load(c + COLUMN.x_m), g_x, new_m)
    keep = (m_x == 0.0) & (m_x_lo == 0.0) & (m_0 == 0.0) & (m_u == 0.0)
    new_m = tl.where(keep, new_m + g_m, new_m)

    new_x = tl.where(live, new_x, g_x + g_x0)
    new_m = tl.where(live, new_m, g_m)
    noise = tl.where(live, term(sd, g_x, 0.0), zero)
    store_wanted(new_x_ptr, new_x, sample, new_x_stride, col, lane, mask, ALIGN)
    store_wanted(new_memory_ptr, new_m, sample, new_memory_stride, col, lane, mask, ALIGN)
    store_wanted(new_noise_ptr, noise, sample, new_noise_stride, col, lane, mask, ALIGN)
    store_output_gradients(
        tl.where(live, term(p_o, g_0, 0.0), zero), tl.where(live, term(p_o, g_u, 0.0), zero),
        new_out_ptr, new_uncond_ptr, new_uncond2_ptr,
        guidance_ptr, guidance2_ptr, new_out_stride, new_uncond_stride, new_uncond2_stride,
        sample, col, lane, mask, ALIGN, GUIDANCE_SHARED, GUIDANCE2_SHARED,
    )  # fmt: skip


def diffusion_step_backward(
    grad_x: torch.Tensor | None,
    grad_memory: torch.Tensor | None,
    grad_x0: torch.Tensor | None,
    x: torch.Tensor,
    model_out: torch.Tensor,
    coef: torch.Tensor,
    row: torch.Tensor,
    draw: torch.Tensor,
    key: torch.Tensor,
    stream: torch.Tensor,
    *,
    memories: int = 1,
    wanted: int = ALL,
    **options: torch.Tensor | float | None,
) -> tuple[torch.Tensor, ...]:
    given = given_options("diffusion_step_backward", options)
    kinds = results(x, model_out, memories, wanted, given)
    new, targets = fresh(kinds, x.device)
    launch(
        diffusion_step_backward_kernel,
        (
            x,
            grad_x,
            grad_memory,
            grad_x0,
            model_out,
            given.uncond_out,
            given.uncond_out2,
            given.noise,
            *targets,
        ),
        (coef, row, draw, key, stream, given.guidance, given.guidance2, given.noise_scale),
        given.x0_clamp,
        coef.shape[0],
        LEARNED=model_out.shape[1] != x.shape[1],
        MEMORIES=memories,
        ROW_SHARED=shared(row),
        DRAW_SHARED=shared(draw),
        GUIDANCE_SHARED=shared(given.guidance),
        GUIDANCE2_SHARED=shared(given.guidance2),
        SCALE_SHARED=shared(given.noise_scale),
    )
    return new
