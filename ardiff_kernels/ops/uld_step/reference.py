"""One row of a kinetic sampler in plain PyTorch: the definition of `uld_step`.

Computes in float64 when the state is float64 (the oracle of the tests), else in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...dispatch.library import options as given_options
from .._shared.address import counter_word, normal_pairs
from .._shared.rows import column, compute_dtype, guided, lookup, term
from . import COLUMNS


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
    **options: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, d = z.shape
    dtype = compute_dtype(z)
    given = given_options("uld_step", options)
    c, live = lookup(coef, COLUMNS, row, rows, dtype)
    out = guided(model_out, given, d, dtype)
    if given.noise is None:
        noise, noise2 = normal_pairs(key, counter_word(draw), stream, d)
    else:
        noise, noise2 = given.noise, given.noise2
    n1, n2 = noise.to(dtype), noise2.to(dtype)
    if given.noise_scale is not None:
        s = column(given.noise_scale, dtype)
        c.z_1, c.z_2, c.v_1 = s * c.z_1, s * c.z_2, s * c.v_1

    start = c.a_z != 0
    diff = torch.where(start, torch.zeros_like(z), z - anchor)
    move = term(c.z_z_lo, z) + term(c.z_d, diff) + term(c.z_v, v) + term(c.z_o, out)
    z_new = term(c.z_z, z) + (move + term(c.z_1, n1) + term(c.z_2, n2))
    v_new = term(c.v_z, z) + term(c.v_d, diff) + term(c.v_v, v) + term(c.v_o, out) + term(c.v_1, n1)
    anchor_new = torch.where(start, term(c.a_z, z) + term(c.a_z_lo, z), anchor)
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
