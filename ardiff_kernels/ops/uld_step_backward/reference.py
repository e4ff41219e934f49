"""The transposed row of `uld_step` in plain PyTorch: the definition of `uld_step_backward`.

Computes in float64 when the gradients are float64, else in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...dispatch.library import options as given_options
from .._shared.rows import column, compute_dtype, guidance_weights, lookup, term
from ..uld_step import COLUMNS
from . import ALL, results


def uld_step_backward(
    grad_z: Tensor | None,
    grad_v: Tensor | None,
    grad_anchor: Tensor | None,
    coef: Tensor,
    row: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    wanted: int = ALL,
    **options: Tensor | None,
) -> tuple[Tensor, ...]:
    grads = (grad_z, grad_v, grad_anchor)
    given = given_options("uld_step_backward", options)
    lead = next(g for g in grads if g is not None)
    kind, zero = compute_dtype(lead), torch.zeros_like(lead)
    g_z, g_v, g_a = (zero if g is None else g for g in grads)
    c, live = lookup(coef, COLUMNS, row, lead.shape[0], kind)
    if given.noise_scale is not None:
        s = column(given.noise_scale, kind)
        c.z_1, c.z_2, c.v_1 = s * c.z_1, s * c.z_2, s * c.v_1

    start = c.a_z != 0
    diff = torch.where(start, zero, term(c.z_d, g_z) + term(c.v_d, g_v))
    z = term(c.z_z_lo, g_z) + term(c.v_z, g_v) + diff
    z = z + torch.where(start, term(c.a_z_lo, g_a) + term(c.a_z, g_a), zero) + term(c.z_z, g_z)
    v = term(c.z_v, g_z) + term(c.v_v, g_v)
    anchor = torch.where(start, zero, g_a - diff)
    out = term(c.z_o, g_z) + term(c.v_o, g_v)
    n1, n2 = term(c.z_1, g_z) + term(c.v_1, g_v), term(c.z_2, g_z)

    outputs = [w * out for w in guidance_weights(given, kind)]
    moved = [z, v, outputs[0], anchor, *outputs[1:], n1, n2]
    passed = [g_z, g_v, zero, g_a, zero, zero, zero, zero]
    kinds = results(lead.shape, kind, dtype, wanted, given)
    return tuple(
        (torch.where(live, new, old) if len(shape) == 2 else lead.new_empty(shape)).to(result_dtype)
        for new, old, (shape, result_dtype) in zip(moved, passed, kinds, strict=True)
    )
