"""The transposed row of `uld_step` in plain PyTorch: the definition of `uld_step_backward`.

Computes in float64 when the gradients are float64, else in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._shared.rows import column, compute_dtype, guidance_weights, lookup, term
from . import ALL, results


def uld_step_backward(
    grad_z: Tensor | None,
    grad_v: Tensor | None,
    grad_anchor: Tensor | None,
    coef: Tensor,
    row: Tensor,
    *,
    guidance: Tensor | None = None,
    guidance2: Tensor | None = None,
    noise_scale: Tensor | None = None,
    dtype: torch.dtype,
    wanted: int = ALL,
) -> tuple[Tensor, ...]:
    given = (grad_z, grad_v, grad_anchor)
    lead = next(g for g in given if g is not None)
    kind, zero = compute_dtype(lead), torch.zeros_like(lead)
    g_z, g_v, g_a = (zero if g is None else g for g in given)
    c, live = lookup(coef, row, lead.shape[0], kind)
    z_z, z_z_lo, z_d, z_v, z_o, z_1, z_2, v_z, v_d, v_v, v_o, v_1, a_z, a_z_lo = c.unbind(1)[:14]
    if noise_scale is not None:
        s = column(noise_scale, kind)
        z_1, z_2, v_1 = s * z_1, s * z_2, s * v_1

    start = a_z != 0
    diff = torch.where(start, zero, term(z_d, g_z) + term(v_d, g_v))
    z = term(z_z_lo, g_z) + term(v_z, g_v) + diff
    z = z + torch.where(start, term(a_z_lo, g_a) + term(a_z, g_a), zero) + term(z_z, g_z)
    v = term(z_v, g_z) + term(v_v, g_v)
    anchor = torch.where(start, zero, g_a - diff)
    out = term(z_o, g_z) + term(v_o, g_v)
    n1, n2 = term(z_1, g_z) + term(v_1, g_v), term(z_2, g_z)

    outputs = [w * out for w in guidance_weights(guidance, guidance2, kind)]
    moved = [z, v, outputs[0], anchor, *outputs[1:], n1, n2]
    passed = [g_z, g_v, zero, g_a, zero, zero, zero, zero]
    kinds = results(lead.shape, kind, dtype, wanted, guidance, guidance2)
    return tuple(
        (torch.where(live, new, old) if len(shape) == 2 else lead.new_empty(shape)).to(result_dtype)
        for new, old, (shape, result_dtype) in zip(moved, passed, kinds, strict=True)
    )
