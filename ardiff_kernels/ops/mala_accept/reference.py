"""The Metropolis test in plain PyTorch: the definition of `mala_accept`.

Computes in float64 when the state is float64 (the oracle of the tests), else element by element in
float32. Sums are float64 either way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...dispatch.library import options as given_options
from .._shared.address import Purpose, counter_word, philox_words
from .._shared.rows import compute_dtype, lookup, term
from . import COLUMNS, MalaAccept


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
    **options: Tensor | None,
) -> MalaAccept:
    rows, _ = x.shape
    dtype = compute_dtype(x)
    given = given_options("mala_accept", options)
    c, live = lookup(coef, COLUMNS, row, rows, dtype)
    o_x, o_y = out_x.to(dtype), out_y.to(dtype)

    delta = y - x
    grad_x = term(c.g_z, x) + term(c.g_d, x - anchor) + term(c.g_o, o_x)
    grad_y = term(c.g_z, y) + term(c.g_d, y - anchor) + term(c.g_o, o_y)
    terms = term(c.c_g, (grad_x - grad_y) * (grad_x + grad_y)) + term(
        c.c_d, delta * (grad_x + grad_y)
    )
    if given.v_x is not None:
        terms = terms + term(0.5 * c.c_v, (given.v_x - given.v_y) * (given.v_x + given.v_y))
    if given.out_mid is not None:
        # The scores' parts in z cancel, since the midpoint is the mean.
        terms = terms + term(2 / 3 * c.s_o, delta * (given.out_mid.to(dtype) - 0.5 * (o_x + o_y)))
    if given.energy_x is not None:
        terms = terms - term(0.5 * c.s_z, delta * (x + y)) - term(0.5 * c.s_o, delta * (o_x + o_y))
    log_alpha = total(terms)
    defined = (y.isfinite() & out_y.isfinite()).all(1, keepdim=True) & log_alpha.isfinite()
    if given.energy_x is not None:
        energy_x, energy_y = given.energy_x.double()[:, None], given.energy_y.double()[:, None]
        defined &= energy_y.isfinite() & ~energy_x.isnan()
        log_alpha = log_alpha + (energy_x - energy_y)
    log_alpha = log_alpha.to(dtype)

    ball2 = c.R2
    if given.ball_radius is not None:
        ball2 = given.ball_radius.double().square().reshape(-1, 1)
    inside = (c.r2 <= 0) | (total(delta.square()) <= c.r2)
    inside &= (ball2 <= 0) | (total(y.square()) <= ball2)
    log_u = log_uniform(key, draw, stream).to(dtype)
    accepted = live & defined & inside & (log_u < log_alpha)

    take_y = accepted | ~live
    none = x.new_empty(0)
    log_alpha = torch.where(defined, log_alpha, -torch.inf)
    return MalaAccept(
        torch.where(take_y, y, x),
        torch.where(take_y, out_y, out_x),
        none if given.v_x is None else torch.where(take_y, given.v_y, -given.v_x),
        none.clone()
        if given.energy_x is None
        else torch.where(take_y[:, 0], given.energy_y, given.energy_x),
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
