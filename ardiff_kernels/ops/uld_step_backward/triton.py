"""Triton kernel of `uld_step_backward`: one launch; absent gradients and results that are not
wanted are compiled away."""

import torch
import triton
import triton.language as tl

from ...dispatch.library import options as given_options
from .._shared.triton.common import (
    at_sample,
    gradient_tile,
    store_output_gradients,
    store_wanted,
    table_row,
    term,
    tile,
)
from .._shared.triton.launch import fresh, launch, shared
from .._shared.triton.names import columns
from ..uld_step import COLUMNS
from . import ALL, results

COLUMN = columns(COLUMNS)


@triton.jit
def uld_step_backward_kernel(
    grad_z_ptr, grad_v_ptr, grad_anchor_ptr, z_ptr, v_ptr, out_ptr, anchor_ptr, uncond_ptr,
    uncond2_ptr, noise_ptr, noise2_ptr,
    coef_ptr, row_ptr, guidance_ptr, guidance2_ptr, scale_ptr,
    grad_z_stride, grad_v_stride, grad_anchor_stride, z_stride, v_stride, out_stride, anchor_stride,
    uncond_stride, uncond2_stride, noise_stride, noise2_stride,
    T, B, d, nd,
    ROW_SHARED: tl.constexpr, GUIDANCE_SHARED: tl.constexpr, GUIDANCE2_SHARED: tl.constexpr,
    SCALE_SHARED: tl.constexpr,
    BR: tl.constexpr, BD: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    sample, col, lane, mask = tile(B, d, nd, BR, BD, ALIGN)
    g_z = gradient_tile(grad_z_ptr, mask, sample, grad_z_stride, col, lane, mask, ALIGN)
    g_v = gradient_tile(grad_v_ptr, mask, sample, grad_v_stride, col, lane, mask, ALIGN)
    g_a = gradient_tile(grad_anchor_ptr, mask, sample, grad_anchor_stride, col, lane, mask, ALIGN)
    zero = tl.zeros(mask.shape, tl.float32)

    row = at_sample(row_ptr, sample, ROW_SHARED)
    c, live = table_row(coef_ptr, row, T)
    scale = 1.0
    if scale_ptr is not None:
        scale = at_sample(scale_ptr, sample, SCALE_SHARED)
    a_z = tl.load(c + COLUMN.a_z)
    start = a_z != 0.0
    diff = term(tl.load(c + COLUMN.v_d), g_v, term(tl.load(c + COLUMN.z_d), g_z, 0.0))
    diff = tl.where(start, 0.0, diff)
    z = term(tl.load(c + COLUMN.v_z), g_v, term(tl.load(c + COLUMN.z_z_lo), g_z, 0.0))
    moved = term(a_z, g_a, term(tl.load(c + COLUMN.a_z_lo), g_a, z))
    z = term(tl.load(c + COLUMN.z_z), g_z, tl.where(start, moved, z + diff))
    v = term(tl.load(c + COLUMN.v_v), g_v, term(tl.load(c + COLUMN.z_v), g_z, 0.0))
    out = term(tl.load(c + COLUMN.v_o), g_v, term(tl.load(c + COLUMN.z_o), g_z, 0.0))
    anchor = tl.where(start, 0.0, g_a - diff)
    noise = term(
        tl.load(c + COLUMN.v_1) * scale, g_v, term(tl.load(c + COLUMN.z_1) * scale, g_z, 0.0)
    )
    noise2 = term(tl.load(c + COLUMN.z_2) * scale, g_z, 0.0)

    z = tl.where(live, z, g_z)
    v = tl.where(live, v, g_v)
    anchor = tl.where(live, anchor, g_a)
    store_wanted(z_ptr, z, sample, z_stride, col, lane, mask, ALIGN)
    store_wanted(v_ptr, v, sample, v_stride, col, lane, mask, ALIGN)
    store_wanted(anchor_ptr, anchor, sample, anchor_stride, col, lane, mask, ALIGN)
    noise = tl.where(live, noise, zero)
    noise2 = tl.where(live, noise2, zero)
    store_wanted(noise_ptr, noise, sample, noise_stride, col, lane, mask, ALIGN)
    store_wanted(noise2_ptr, noise2, sample, noise2_stride, col, lane, mask, ALIGN)
    store_output_gradients(
        tl.where(live, out, zero), None, out_ptr, uncond_ptr, uncond2_ptr, guidance_ptr,
        guidance2_ptr, out_stride, uncond_stride, uncond2_stride, sample, col, lane, mask, ALIGN,
        GUIDANCE_SHARED, GUIDANCE2_SHARED,
    )  # fmt: skip


def uld_step_backward(
    grad_z: torch.Tensor | None,
    grad_v: torch.Tensor | None,
    grad_anchor: torch.Tensor | None,
    coef: torch.Tensor,
    row: torch.Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    wanted: int = ALL,
    **options: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    given = given_options("uld_step_backward", options)
    grads = (grad_z, grad_v, grad_anchor)
    lead = next(g for g in grads if g is not None)
    kinds = results(lead.shape, lead.dtype, dtype, wanted, given)
    new, targets = fresh(kinds, lead.device)
    launch(
        uld_step_backward_kernel,
        (*grads, *targets),
        (coef, row, given.guidance, given.guidance2, given.noise_scale),
        coef.shape[0],
        ROW_SHARED=shared(row),
        GUIDANCE_SHARED=shared(given.guidance),
        GUIDANCE2_SHARED=shared(given.guidance2),
        SCALE_SHARED=shared(given.noise_scale),
    )
    return new
