"""Triton kernel of `uld_step`: one launch per step, functional or in place.

A lane owns four neighbouring elements of every tensor and makes their eight normals from two Philox
quads, so float32 tensors move in 128-bit loads and stores and nothing passes between lanes. Absent
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
    store_tile,
    table_row,
    term,
    tile,
    two_normals,
)
from .._shared.triton.launch import launch, shared
from .._shared.triton.names import PURPOSE, columns
from . import COLUMNS

COLUMN = columns(COLUMNS)


@triton.jit
def uld_update(c, z, v, out, anchor, z_1, z_2, v_1, n1, n2, n1_v):
    """The new z and v of the row at `c`, the anchor of a row that begins a stage, and whether it
    does; z_1, z_2 and v_1 are multiplied by the noise scale, n1_v is n1 as v takes it."""
    a_z = tl.load(c + COLUMN.a_z)
    start = a_z != 0.0
    delta = tl.where(start, 0.0, z - anchor)
    z_new = term(tl.load(c + COLUMN.z_z_lo), z, 0.0)
    z_new = term(tl.load(c + COLUMN.z_d), delta, z_new)
    z_new = term(tl.load(c + COLUMN.z_v), v, z_new)
    z_new = term(tl.load(c + COLUMN.z_o), out, z_new)
    z_new = tl.fma(n1, z_1, z_new)
    z_new = tl.fma(n2, z_2, z_new)
    z_new = term(tl.load(c + COLUMN.z_z), z, z_new)
    v_new = term(tl.load(c + COLUMN.v_z), z, 0.0)
    v_new = term(tl.load(c + COLUMN.v_d), delta, v_new)
    v_new = term(tl.load(c + COLUMN.v_v), v, v_new)
    v_new = term(tl.load(c + COLUMN.v_o), out, v_new)
    v_new = tl.fma(n1_v, v_1, v_new)
    anchor_new = term(a_z, z, term(tl.load(c + COLUMN.a_z_lo), z, 0.0))
    return z_new, v_new, anchor_new, start


@triton.jit
def uld_step_kernel(
    z_ptr, v_ptr, out_ptr, anchor_ptr, z_new_ptr, v_new_ptr, anchor_new_ptr, z_model_ptr,
    uncond_ptr, uncond2_ptr, noise_ptr, noise2_ptr,
    coef_ptr, row_ptr, draw_ptr, key_ptr, stream_ptr, guidance_ptr, guidance2_ptr, scale_ptr,
    z_stride, v_stride, out_stride, anchor_stride, z_new_stride, v_new_stride, anchor_new_stride,
    z_model_stride, uncond_stride, uncond2_stride, noise_stride, noise2_stride,
    T, B, d, nd,
    IN_PLACE: tl.constexpr,
    ROW_SHARED: tl.constexpr, DRAW_SHARED: tl.constexpr, GUIDANCE_SHARED: tl.constexpr,
    GUIDANCE2_SHARED: tl.constexpr, SCALE_SHARED: tl.constexpr,
    BR: tl.constexpr, BD: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    sample, col, lane, mask = tile(B, d, nd, BR, BD, ALIGN)
    z = load_tile(z_ptr, sample, z_stride, col, lane, mask, ALIGN)
    v = load_tile(v_ptr, sample, v_stride, col, lane, mask, ALIGN)
    anchor = load_tile(anchor_ptr, sample, anchor_stride, col, lane, mask, ALIGN)
    out = guided_output(
        out_ptr, uncond_ptr, uncond2_ptr, guidance_ptr, guidance2_ptr,
        out_stride, uncond_stride, uncond2_stride, sample, col, lane, mask, ALIGN,
        GUIDANCE_SHARED, GUIDANCE2_SHARED,
    )  # fmt: skip

    row = at_sample(row_ptr, sample, ROW_SHARED)
    c, live = table_row(coef_ptr, row, T)
    z_1 = tl.load(c + COLUMN.z_1)
    z_2 = tl.load(c + COLUMN.z_2)
    v_1 = tl.load(c + COLUMN.v_1)
    if scale_ptr is not None:
        scale = at_sample(scale_ptr, sample, SCALE_SHARED)
        z_1 *= scale
        z_2 *= scale
        v_1 *= scale
    if noise_ptr is not None:
        n1 = load_tile(noise_ptr, sample, noise_stride, col, lane, mask, ALIGN)
        n2 = load_tile(noise2_ptr, sample, noise2_stride, col, lane, mask, ALIGN)
        n1_v = tl.where(v_1 != 0.0, n1, 0.0)
        n1 = tl.where(z_1 != 0.0, n1, 0.0)
        n2 = tl.where(z_2 != 0.0, n2, 0.0)
    else:
        c1 = counter_word(at_sample(draw_ptr, sample, DRAW_SHARED), PURPOSE.STEP_NOISE)
        n1, n2 = two_normals(col, c1, key_ptr, tl.load(stream_ptr + sample), BR, BD)
        n1_v = n1

    z_new, v_new, anchor_new, start = uld_update(c, z, v, out, anchor, z_1, z_2, v_1, n1, n2, n1_v)
    z_new = tl.where(live, z_new, z)
    store_tile(z_new_ptr, z_new, sample, z_new_stride, col, lane, mask, ALIGN)
    store_tile(v_new_ptr, tl.where(live, v_new, v), sample, v_new_stride, col, lane, mask, ALIGN)
    moves = live & start
    if IN_PLACE:
        mask_anchor = mask & moves
    else:
        mask_anchor = mask
    anchor_new = tl.where(moves, anchor_new, anchor)
    store_tile(anchor_new_ptr, anchor_new, sample, anchor_new_stride, col, lane, mask_anchor, ALIGN)
    if z_model_ptr is not None:
        store_tile(z_model_ptr, z_new, sample, z_model_stride, col, lane, mask, ALIGN)


def _step(
    state: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    new: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    model_out: torch.Tensor,
    address: tuple[torch.Tensor, ...],
    **options: torch.Tensor | None,
) -> None:
    given = given_options("uld_step_", options)
    z, v, anchor = state
    coef, row, draw, _, _ = address
    launch(
        uld_step_kernel,
        (
            z,
            v,
            model_out,
            anchor,
            *new,
            given.z_model,
            given.uncond_out,
            given.uncond_out2,
            given.noise,
            given.noise2,
        ),
        (*address, given.guidance, given.guidance2, given.noise_scale),
        coef.shape[0],
        IN_PLACE=new[0] is z,
        ROW_SHARED=shared(row),
        DRAW_SHARED=shared(draw),
        GUIDANCE_SHARED=shared(given.guidance),
        GUIDANCE2_SHARED=shared(given.guidance2),
        SCALE_SHARED=shared(given.noise_scale),
    )


def uld_step_(
    z: torch.Tensor,
    v: torch.Tensor,
    model_out: torch.Tensor,
    anchor: torch.Tensor,
    coef: torch.Tensor,
    row: torch.Tensor,
    draw: torch.Tensor,
    key: torch.Tensor,
    stream: torch.Tensor,
    **options: torch.Tensor | None,
) -> None:
    state = (z, v, anchor)
    _step(state, state, model_out, (coef, row, draw, key, stream), **options)


def uld_step(
    z: torch.Tensor,
    v: torch.Tensor,
    model_out: torch.Tensor,
    anchor: torch.Tensor,
    coef: torch.Tensor,
    row: torch.Tensor,
    draw: torch.Tensor,
    key: torch.Tensor,
    stream: torch.Tensor,
    **options: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    new = tuple(torch.empty(z.shape, dtype=x.dtype, device=z.device) for x in (z, v, anchor))
    _step((z, v, anchor), new, model_out, (coef, row, draw, key, stream), **options)
    return new
