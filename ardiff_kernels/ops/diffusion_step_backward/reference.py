"""The transposed row of `diffusion_step` in plain PyTorch: the definition of
`diffusion_step_backward`.

Computes in float64 when the state is float64, else in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._shared.address import counter_word, normals
from .._shared.rows import column, compute_dtype, guidance_weights, guided, lookup, term
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
    uncond_out: Tensor | None = None,
    uncond_out2: Tensor | None = None,
    guidance: Tensor | None = None,
    guidance2: Tensor | None = None,
    noise_scale: Tensor | None = None,
    noise: Tensor | None = None,
    x0_clamp: float | None = None,
    second_memory: bool = False,
    wanted: int = ALL,
) -> tuple[Tensor, ...]:
    rows, d = x.shape
    kind = compute_dtype(x)
    zero = torch.zeros(x.shape, dtype=kind, device=x.device)
    g_x, g_x0 = (zero if g is None else g.to(kind) for g in (grad_x, grad_x0))
    g_m = zero.repeat(1, 1 + second_memory) if grad_memory is None else grad_memory.to(kind)
    c, live = lookup(coef, row, rows, kind)
    p_x, p_o, x_x, x_x_lo, x_0, x_m, x_d, x_n, m_x, m_x_lo, m_0, lv_min, lv_max = c.unbind(1)[:13]
    g_m, *second = g_m.split(d, 1)

    g_0 = g_x0 + term(x_0, g_x) + term(m_0, g_m)
    if x0_clamp is not None:
        out = guided(model_out, uncond_out, uncond_out2, guidance, guidance2, d, kind)
        inside = (term(p_x, x.to(kind)) + term(p_o, out)).abs() <= x0_clamp
        g_0 = torch.where(inside, g_0, zero)

    learned_range = model_out.shape[1] == 2 * d
    if learned_range:
        share = 0.5 * (model_out[:, d:].to(kind) + 1)
        learned = torch.exp(0.5 * (lv_min + share * (lv_max - lv_min)))
        x_n = torch.where(x_n != 0, learned, x_n)
    scale = x_n if noise_scale is None else column(noise_scale, kind) * x_n

    new_x = term(x_x_lo, g_x) + term(m_x_lo, g_m) + term(p_x, g_0) + term(x_d, g_x)
    new_x = new_x + term(m_x, g_m) + term(x_x, g_x)
    keeps = (m_x == 0) & (m_x_lo == 0) & (m_0 == 0)
    new_memory = term(x_m, g_x) + torch.where(keeps, g_m, zero)
    if second:
        s_x, s_m, s_2 = c.unbind(1)[13:]
        stays = (s_x == 0) & (s_m == 0) & (s_2 == 0)
        new_x = new_x + term(s_x, second[0])
        new_memory = new_memory + term(s_m, second[0])
        new_second = torch.where(stays, second[0], term(s_2, second[0])) - term(x_d, g_x)
        new_memory = torch.cat((new_memory, new_second), 1)
    else:
        new_memory = new_memory - term(x_d, g_x)

    weights = guidance_weights(guidance, guidance2, kind)
    outputs = [w * term(p_o, g_0) for w in weights]
    if learned_range:
        n = normals(key, counter_word(draw), stream, d) if noise is None else noise
        g_r = term(scale, n.to(kind)) * (0.25 * (lv_max - lv_min)) * g_x
        outputs = [torch.cat((g, h), 1) for g, h in zip(outputs, (g_r, zero, zero), strict=True)]
    none = torch.zeros_like(outputs[0])
    moved = [new_x, outputs[0], new_memory, *outputs[1:], term(scale, g_x)]
    passed = [g_x + g_x0, none, torch.cat((g_m, *second), 1), none, none, zero]
    kinds = results(x, model_out, second_memory, wanted, uncond_out, uncond_out2)
    return tuple(
        (torch.where(live, new, old) if len(shape) == 2 else x.new_empty(shape)).to(dtype)
        for new, old, (shape, dtype) in zip(moved, passed, kinds, strict=True)
    )
