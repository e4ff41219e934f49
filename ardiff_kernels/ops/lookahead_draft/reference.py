"""Drafted rows in plain PyTorch: the definition of `lookahead_draft`.

Computes in float64 when the state is float64 (the oracle of the tests), else in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...dispatch.library import options as given_options
from .._shared.rows import compute_dtype
from .._shared.window import Window, advance, clamped


def lookahead_draft(
    x: Tensor,
    memory: Tensor,
    coef: Tensor,
    plan: Tensor,
    row: Tensor,
    count: Tensor,
    draw: Tensor,
    key: Tensor,
    stream: Tensor,
    rows: int,
    **options: Tensor | float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    given = given_options("lookahead_draft", options)
    dtype = compute_dtype(x)
    window = Window(coef, plan, row, count, draw, key, stream, rows, x.shape[1], dtype, given)
    x, memory = x.to(dtype), memory.to(dtype)
    v = torch.zeros_like(x) if given.v is None else given.v.to(dtype)
    states, velocities, drafts = [x], [v], []
    previous = window.known(window.row - 1)
    unknown = ~previous.found  # no row has been evaluated
    x_before, guess_before, gain_before = previous.x, previous.x0, previous.gain
    for j in range(rows):
        c, p, live = window.coefficients(j)
        known = window.known(window.row + j)
        g = torch.where(unknown, p.g_0, torch.minimum(gain_before * p.g_s, p.g_max))
        fresh = guess_before + g * (x - p.r_x * x_before - p.r_0 * guess_before)
        if j == 0:
            fresh = torch.where(unknown, g * x, fresh)
        guess = torch.where(known.found, known.x0 + known.gain * (x - known.x), fresh)
        guess = clamped(guess, given.x0_clamp)
        gain_before = torch.where(known.found, known.gain, g)
        new = advance(c, p, window.kinetic(j), x, v, guess, memory, window.noise(j))
        x_before, guess_before = x, guess
        x, v, memory = (torch.where(live, a, b) for a, b in zip(new, (x, v, memory), strict=True))
        states.append(x)
        velocities.append(v)
        drafts.append(torch.where(live, guess, 0))
    none = x.new_empty(0)
    return (
        torch.stack(states, 1),
        none if given.v is None else torch.stack(velocities, 1),
        torch.stack(drafts, 1),
    )
