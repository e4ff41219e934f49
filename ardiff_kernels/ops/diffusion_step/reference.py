"""One row of a diffusion sampler in plain PyTorch: the definition of `diffusion_step`.

Computes in float64 when the state is float64 (the oracle of the tests), else in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...dispatch.library import options as given_options
from .._shared.address import counter_word, normals
from .._shared.rows import column, compute_dtype, guided, lookup, term
from . import COLUMNS


def diffusion_step(
    x: Tensor,
    model_out: Tensor,
    memory: Tensor,
    coef: Tensor,
    row: Tensor,
    draw: Tensor,
    key: Tensor,
    stream: Tensor,
    **options: Tensor | float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, d = x.shape
    dtype = compute_dtype(x)
    given = given_options("diffusion_step", options)
    c, live = lookup(coef, COLUMNS, row, rows, dtype)
    old, (kept, *more) = x.to(dtype), memory.to(dtype).split(d, 1)
    origin, third = more[0] if more else kept, more[1] if len(more) == 2 else None

    def data_prediction(out: Tensor) -> Tensor:
        x0 = term(c.p_x, old) + term(c.p_o, out)
        clamp = given.x0_clamp
        return x0 if clamp is None else x0.clamp(-clamp, clamp)

    x0 = data_prediction(guided(model_out, given, d, dtype))
    x0u = x0 if given.uncond_out is None else data_prediction(given.uncond_out[:, :d].to(dtype))

    scale = c.x_n
    if model_out.shape[1] == 2 * d:
        share = 0.5 * (model_out[:, d:].to(dtype) + 1)
        scale = torch.where(
            c.x_n != 0, torch.exp(0.5 * (c.lv_min + share * (c.lv_max - c.lv_min))), c.x_n
        )
    if given.noise_scale is not None:
        scale = column(given.noise_scale, dtype) * scale
    n = given.noise
    if n is None:
        n = normals(key, counter_word(draw), stream, d)

    move = term(c.x_x_lo, old) + term(c.x_0, x0) + term(c.x_m, kept) + term(c.x_d, old - origin)
    move = move + term(c.x_u, x0u)
    if third is not None:
        move = move + term(c.x_3, third)
    x_new = term(c.x_x, old) + (move + term(scale, n.to(dtype)))
    keeps = (c.m_x == 0) & (c.m_x_lo == 0) & (c.m_0 == 0) & (c.m_u == 0)
    update = term(c.m_x, old) + term(c.m_x_lo, old) + term(c.m_0, x0) + term(c.m_u, x0u)
    memories = [torch.where(keeps, kept, update)]
    if more:
        keeps = (c.s_x == 0) & (c.s_m == 0) & (c.s_2 == 0)
        update = term(c.s_x, old) + (term(c.s_m, kept) + term(c.s_2, origin))
        memories.append(torch.where(keeps, origin, update))
    if third is not None:
        memories.append(torch.where(c.t_2 == 0, third, term(c.t_2, origin)))
    memory_new = torch.cat(memories, 1)
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
    **options: Tensor | float | None,
) -> None:
    new_x, new_memory, new_x0 = diffusion_step(
        x, model_out, memory, coef, row, draw, key, stream, **options
    )
    x.copy_(new_x)
    memory.copy_(new_memory)
    if x0 is not None:
        x0.copy_(new_x0)
    if z_model is not None:
        z_model.copy_(new_x)
