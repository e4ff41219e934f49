"""The Metropolis test in plain PyTorch: the definition of `mala_accept`.

Computes in float64 when the state is float64 (the oracle of the tests), else element by element in
float32. Sums are float64 either way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._shared.address import Purpose, counter_word, philox_words
from .._shared.rows import compute_dtype, lookup, term


def total(t: Tensor) -> Tensor:
    """Sum of each row, float64 `[B, 1]`, halving it again and again: an order that only d sets."""
    t = t.double()
    while t.shape[1] > 1:
        half = (t.shape[1] + 1) // 2
        rest = t[:, half:]
        t = torch.cat([t[:, : rest.shape[1]] + rest, t[:, rest.shape[1] : half]], 1)
    return t


def log_uniform(key: Tensor, draw: Tensor, stream: Tensor) -> Tensor:
    """log of the accept uniform (:attr:`Purpose.ACCEPT_UNIFORM`), float64 `[B, 1]`."""
    zero = torch.zeros_like(stream)
    word = philox_words(zero, counter_word(draw, Purpose.ACCEPT_UNIFORM), stream, key)[0]
    return ((word.double() + 0.5) * 2.0**-32).log().unsqueeze(1)


def mala_accept(
    x: Tensor,
    y: Tensor,
    out_x: Tensor,
    out_y: Tensor,
    anchor: Tensor,
    coef: Tensor,
    row: Tensor,
    draw: Tensor,
    key: Tensor,
    stream: Tensor,
    *,
    v_x: Tensor | None = None,
    v_y: Tensor | None = None,
    out_mid: Tensor | None = None,
    energy_x: Tensor | None = None,
    energy_y: Tensor | None = None,
    ball_radius: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows, _ = x.shape
    dtype = compute_dtype(x)
    c, live = lookup(coef, row, rows, dtype)
    g_z, g_d, g_o, s_z, s_o, c_g, c_d, c_v, r2, ball2 = c.unbind(1)[:10]
    o_x, o_y = out_x.to(dtype), out_y.to(dtype)

    delta = y - x
    grad_x = term(g_z, x) + term(g_d, x - anchor) + term(g_o, o_x)
    grad_y = term(g_z, y) + term(g_d, y - anchor) + term(g_o, o_y)
    terms = term(c_g, (grad_x - grad_y) * (grad_x + grad_y)) + term(c_d, delta * (grad_x + grad_y))
    if v_x is not None:
        terms = terms + term(0.5 * c_v, (v_x - v_y) * (v_x + v_y))
    if out_mid is not None:
        # The scores' parts in z cancel, since the midpoint is the mean.
        terms = terms + term(2 / 3 * s_o, delta * (out_mid.to(dtype) - 0.5 * (o_x + o_y)))
    if energy_x is not None:
        terms = terms - term(0.5 * s_z, delta * (x + y)) - term(0.5 * s_o, delta * (o_x + o_y))
    log_alpha = total(terms)
    if energy_x is not None:
        log_alpha = log_alpha + (energy_x.double() - energy_y.double()).unsqueeze(1)
    log_alpha = log_alpha.to(dtype)

    if ball_radius is not None:
        ball2 = ball_radius.double().square().reshape(-1, 1)
    inside = (r2 <= 0) | (total(delta.square()) <= r2)
    inside &= (ball2 <= 0) | (total(y.square()) <= ball2)
    finite = (y.isfinite() & out_y.isfinite()).all(1, keepdim=True) & log_alpha.isfinite()
    log_u = log_uniform(key, draw, stream).to(dtype)
    accepted = live & finite & inside & (log_u < log_alpha)

    take_y = accepted | ~live
    none = x.new_empty(0)
    log_alpha = torch.where(finite, log_alpha, -torch.inf)
    return (
        torch.where(take_y, y, x),
        torch.where(take_y, out_y, out_x),
        none if v_x is None else torch.where(take_y, v_y, -v_x),
        none.clone() if energy_x is None else torch.where(take_y[:, 0], energy_y, energy_x),
        accepted[:, 0],
        torch.where(live, log_alpha, torch.zeros_like(log_alpha))[:, 0],
    )


def mala_accept_(
    x: Tensor,
    y: Tensor,
    out_x: Tensor,
    out_y: Tensor,
    anchor: Tensor,
    coef: Tensor,
    row: Tensor,
    draw: Tensor,
    key: Tensor,
    stream: Tensor,
    *,
    v_y: Tensor | None = None,
    energy_y: Tensor | None = None,
    accepted: Tensor,
    log_alpha: Tensor,
    **options: Tensor | None,
) -> None:
    new = mala_accept(
        x, y, out_x, out_y, anchor, coef, row, draw, key, stream,
        v_y=v_y, energy_y=energy_y, **options,
    )  # fmt: skip
    for old, value in zip((y, out_y, v_y, energy_y, accepted, log_alpha), new, strict=True):
        if old is not None:
            old.copy_(value)
