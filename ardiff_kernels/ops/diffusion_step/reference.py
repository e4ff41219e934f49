"""One row of a diffusion sampler in plain PyTorch: the definition of `diffusion_step`.

Computes in float64 when the state is float64 (the oracle of the tests), else in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._shared.address import counter_word, normals
from .._shared.rows import column, compute_dtype, guided, lookup, term


def diffusion_step(
    x: Tensor,
    model_out: Tensor,
    memory: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor]:
    rows, d = x.shape
    dtype = compute_dtype(x)
    c, live = lookup(coef, row, rows, dtype)
    p_x, p_o, x_x, x_x_lo, x_0, x_m, x_d, x_n, m_x, m_x_lo, m_0, lv_min, lv_max = c.unbind(1)[:13]
    old, (kept, *second) = x.to(dtype), memory.to(dtype).split(d, 1)
    origin = second[0] if second else kept

    out = guided(model_out, uncond_out, uncond_out2, guidance, guidance2, d, dtype)
    x0 = term(p_x, old) + term(p_o, out)
    if x0_clamp is not None:
        x0 = x0.clamp(-x0_clamp, x0_clamp)

    scale = x_n
    if model_out.shape[1] == 2 * d:
        share = 0.5 * (model_out[:, d:].to(dtype) + 1)
        scale = torch.where(x_n != 0, torch.exp(0.5 * (lv_min + share * (lv_max - lv_min))), x_n)
    if noise_scale is not None:
        scale = column(noise_scale, dtype) * scale
    n = normals(key, counter_word(draw), stream, d) if noise is None else noise

    move = term(x_x_lo, old) + term(x_0, x0) + term(x_m, kept) + term(x_d, old - origin)
    x_new = term(x_x, old) + (move + term(scale, n.to(dtype)))
    keeps = (m_x == 0) & (m_x_lo == 0) & (m_0 == 0)
    memory_new = torch.where(keeps, kept, term(m_x, old) + term(m_x_lo, old) + term(m_0, x0))
    if second:
        s_x, s_m, s_2 = c.unbind(1)[13:]
        keeps = (s_x == 0) & (s_m == 0) & (s_2 == 0)
        update = term(s_x, old) + (term(s_m, kept) + term(s_2, origin))
        memory_new = torch.cat((memory_new, torch.where(keeps, origin, update)), 1)
    return (
        torch.where(live, x_new, old).to(x.dtype),
        torch.where(live, memory_new, memory.to(dtype)).to(x.dtype),
        torch.where(live, x0, old).to(x.dtype),
    )


def diffusion_step_(
    x: Tensor,
    model_out: Tensor,
    memory: Tensor,
    coef: Tensor,
    row: Tensor,
    draw: Tensor,
    key: Tensor,
    stream: Tensor,
    *,
    x0: Tensor | None = None,
    z_model: Tensor | None = None,
    x0_clamp: float | None = None,
    **options: Tensor | None,
) -> None:
    new_x, new_memory, new_x0 = diffusion_step(
        x, model_out, memory, coef, row, draw, key, stream, x0_clamp=x0_clamp, **options
    )
    x.copy_(new_x)
    memory.copy_(new_memory)
    if x0 is not None:
        x0.copy_(new_x0)
    if z_model is not None:
        z_model.copy_(new_x)
