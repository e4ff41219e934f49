"""One row of a kinetic sampler in plain PyTorch: the definition of `uld_step`.

Computes in float64 when the state is float64 (the oracle of the tests), else in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._shared.address import counter_word, normal_pairs
from .._shared.rows import column, compute_dtype, guided, lookup, term


def uld_step(
    z: Tensor,
    v: Tensor,
    model_out: Tensor,
    anchor: Tensor,
    coef: Tensor,
    row: Tensor,
    draw: Tensor,
    key: Tensor,
    stream: Tensor,
    *,
    uncond_out: Tensor | None = None,
    uncond_out2: Tensor | None = None,
    guidance: Tensor | None = None,
    guidance2: Tensor | None = None,
    noise_scale: Tensor | None = None,
    noise: Tensor | None = None,
    noise2: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, d = z.shape
    dtype = compute_dtype(z)
    c, live = lookup(coef, row, rows, dtype)
    z_z, z_z_lo, z_d, z_v, z_o, z_1, z_2, v_z, v_d, v_v, v_o, v_1, a_z, a_z_lo = c.unbind(1)[:14]

    out = guided(model_out, uncond_out, uncond_out2, guidance, guidance2, d, dtype)
    if noise is None:
        noise, noise2 = normal_pairs(key, counter_word(draw), stream, d)
    n1, n2 = noise.to(dtype), noise2.to(dtype)
    if noise_scale is not None:
        s = column(noise_scale, dtype)
        z_1, z_2, v_1 = s * z_1, s * z_2, s * v_1

    start = a_z != 0
    diff = torch.where(start, torch.zeros_like(z), z - anchor)
    move = term(z_z_lo, z) + term(z_d, diff) + term(z_v, v) + term(z_o, out)
    z_new = term(z_z, z) + (move + term(z_1, n1) + term(z_2, n2))
    v_new = term(v_z, z) + term(v_d, diff) + term(v_v, v) + term(v_o, out) + term(v_1, n1)
    anchor_new = torch.where(start, term(a_z, z) + term(a_z_lo, z), anchor)
    return (
        torch.where(live, z_new, z),
        torch.where(live, v_new, v),
        torch.where(live, anchor_new, anchor),
    )


def uld_step_(
    z: Tensor,
    v: Tensor,
    model_out: Tensor,
    anchor: Tensor,
    coef: Tensor,
    row: Tensor,
    draw: Tensor,
    key: Tensor,
    stream: Tensor,
    *,
    z_model: Tensor | None = None,
    **options: Tensor | None,
) -> None:
    new = uld_step(z, v, model_out, anchor, coef, row, draw, key, stream, **options)
    for old, value in zip((z, v, anchor), new, strict=True):
        old.copy_(value)
    if z_model is not None:
        z_model.copy_(z)
