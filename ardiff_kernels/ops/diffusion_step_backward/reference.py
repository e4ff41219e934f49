"""The transposed row of `diffusion_step` in plain PyTorch: the definition of
`diffusion_step_backward`.

Computes in float64 when the state is float64, else in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...dispatch.library import options as given_options
from .._shared.address import counter_word, normals
from .._shared.rows import column, compute_dtype, guidance_weights, guided, lookup, term
from ..diffusion_step import COLUMNS
from . import ALL, results


def diffusion_step_backward(
    grad_x: Tensor | None,
    grad_memory: Tensor | None,
    grad_x0: Tensor | None,
    x: Tensor,
    model_out: Tensor,
    coef: Tensor,
    row: Tensor,
    draw: Tensor,
    key: Tensor,
    stream: Tensor,
    *,
    memories: int = 1,
    wanted: int = ALL,
    **options: Tensor | float | None,
) -> tuple[Tensor, ...]:
    rows, d = x.shape
    kind = compute_dtype(x)
    given = given_options("diffusion_step_backward", options)
    zero = torch.zeros(x.shape, dtype=kind, device=x.device)
    g_x, g_x0 = (zero if g is None else g.to(kind) for g in (grad_x, grad_x0))
    g_m = zero.repeat(1, memories) if grad_memory is None else grad_memory.to(kind)
    c, live = lookup(coef, COLUMNS, row, rows, kind)
    g_m, *more = g_m.split(d, 1)

    def within_clamp(gradient: Tensor, out: Tensor) -> Tensor:
        if given.x0_clamp is None:
            return gradient
        inside = (term(c.p_x, x.to(kind)) + term(c.p_o, out)).abs() <= given.x0_clamp
        return torch.where(inside, gradient, zero)

    g_0 = g_x0 + term(c.x_0, g_x) + term(c.m_0, g_m)
    g_u = term(c.x_u, g_x) + term(c.m_u, g_m)
    if given.uncond_out is None:
        g_0, g_u = g_0 + g_u, zero
    else:
        g_u = within_clamp(g_u, given.uncond_out[:, :d].to(kind))
    g_0 = within_clamp(g_0, guided(model_out, given, d, kind))

    learned_range = model_out.shape[1] == 2 * d
    if learned_range:
        share = 0.5 * (model_out[:, d:].to(kind) + 1)
        learned = torch.exp(0.5 * (c.lv_min + share * (c.lv_max - c.lv_min)))
        c.x_n = torch.where(c.x_n != 0, learned, c.x_n)
    scale = c.x_n if given.noise_scale is None else column(given.noise_scale, kind) * c.x_n

    new_x = term(c.x_x_lo, g_x) + term(c.m_x_lo, g_m) + term(c.p_x, g_0) + term(c.x_d, g_x)
    new_x = new_x + term(c.m_x, g_m) + term(c.x_x, g_x) + term(c.p_x, g_u)
    keeps = (c.m_x == 0) & (c.m_x_lo == 0) & (c.m_0 == 0) & (c.m_u == 0)
    new = [term(c.x_m, g_x) + torch.where(keeps, g_m, zero)]
    if more:
        keeps = (c.s_x == 0) & (c.s_m == 0) & (c.s_2 == 0)
        new_x = new_x + term(c.s_x, more[0])
        new[0] = new[0] + term(c.s_m, more[0])
        new.append(torch.where(keeps, more[0], term(c.s_2, more[0])))
    new[-1] = new[-1] - term(c.x_d, g_x)  # of D: the second memory, or the memory without one
    if len(more) == 2:
        new[1] = new[1] + term(c.t_2, more[1])
        new.append(term(c.x_3, g_x) + torch.where(c.t_2 == 0, more[1], zero))

    weights = guidance_weights(given, kind)
    outputs = [w * term(c.p_o, g_0) for w in weights]
    outputs[1] = outputs[1] + term(c.p_o, g_u)
    if learned_range:
        n = given.noise
        if n is None:
            n = normals(key, counter_word(draw), stream, d)
        g_r = term(scale, n.to(kind)) * (0.25 * (c.lv_max - c.lv_min)) * g_x
        outputs = [torch.cat((g, h), 1) for g, h in zip(outputs, (g_r, zero, zero), strict=True)]
    none = torch.zeros_like(outputs[0])
    moved = [new_x, outputs[0], torch.cat(new, 1), *outputs[1:], term(scale, g_x)]
    passed = [g_x + g_x0, none, torch.cat((g_m, *more), 1), none, none, zero]
    kinds = results(x, model_out, memories, wanted, given)
    return tuple(
        (torch.where(live, new, old) if len(shape) == 2 else x.new_empty(shape)).to(dtype)
        for new, old, (shape, dtype) in zip(moved, passed, kinds, strict=True)
    )
