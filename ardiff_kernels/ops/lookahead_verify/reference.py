"""The verification in plain PyTorch: the definition of `lookahead_verify`.

Computes in float64 when the states are float64 (the oracle of the tests), else element by element
in float32. Sums are float64 either way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...dispatch.library import options as given_options
from .._shared.rows import compute_dtype, term
from .._shared.window import Window, advance, clamped, split
from ..mala_accept.reference import log_uniform, total
from . import Verified


def lookahead_verify(
    states: Tensor,
    drafts: Tensor,
    outs: Tensor,
    memory: Tensor,
    coef: Tensor,
    plan: Tensor,
    row: Tensor,
    count: Tensor,
    draw: Tensor,
    key: Tensor,
    stream: Tensor,
    **options: Tensor | float | None,
) -> Verified:
    given = given_options("lookahead_verify", options)
    dtype, (batch, rows, d) = compute_dtype(states), drafts.shape
    window = Window(coef, plan, row, count, draw, key, stream, rows, d, dtype, given)
    states, drafts, outs = (t.to(dtype) for t in (states, drafts, outs))
    velocities = torch.zeros_like(states)
    if given.velocities is not None:
        velocities = given.velocities.to(dtype)
    x, v = states[:, 0], velocities[:, 0]
    memory = drafted_memory = memory.to(dtype)
    draw = draw.expand(batch)
    going = torch.ones(batch, 1, dtype=torch.bool, device=row.device)
    accepted = torch.zeros_like(row)
    ended = torch.zeros_like(row)
    found, gains = [], []
    before = window.known(window.row - 1)
    for j in range(rows):
        c, p, live = window.coefficients(j)
        kinetic, noise = window.kinetic(j), window.noise(j)
        at, at_v, guess = states[:, j], velocities[:, j], drafts[:, j]
        x0 = clamped(term(p.p_x, at) + term(p.p_o, outs[:, j]), given.x0_clamp)
        x0 = torch.where(p.calls != 0, x0, guess)

        out = torch.where(p.calls != 0, outs[:, j], (guess - term(p.p_x, at)) * p.o_0)
        true = advance(c, p, kinetic, at, at_v, x0, memory, noise, out)
        equal = (true[0] == states[:, j + 1]) & (true[1] == velocities[:, j + 1])
        equal = equal.all(1, keepdim=True)
        apart, delta, reach = _differences(c, p, kinetic, guess, x0, drafted_memory, memory)
        if given.tolerance is None:
            _, *pair = noise
            normals = [torch.where(kinetic, pair[0], noise[0]), pair[1] * kinetic]
            length = total(sum(each.square() for each in delta))
            along = total(sum(z * each for z, each in zip(normals, delta, strict=True)))
            log_ratio = (-along - 0.5 * length).to(dtype)
            log_u = log_uniform(key, draw + window.row + j, stream).to(dtype)
            holds = torch.where(reach, log_u <= log_ratio, equal)
            factor = torch.where(length.isfinite() & (length > 0), -2 * along / length, 0)
            factor = torch.where(reach, factor, 0).to(dtype)
            turned = [z + factor * each for z, each in zip(normals, delta, strict=True)]
            true = advance(c, p, kinetic, at, at_v, x0, memory, (turned[0], *turned), out)
        elif given.tolerance == 0:
            holds = equal
        else:
            holds = total((p.unit * apart).square()) <= given.tolerance**2 * d
        stays, takes = going & live & holds, going & live & ~holds
        x = torch.where(stays, states[:, j + 1], torch.where(takes, true[0], x))
        v = torch.where(stays, velocities[:, j + 1], torch.where(takes, true[1], v))
        drafted = advance(c, p, kinetic, at, at_v, guess, drafted_memory, noise)
        drafted_memory = torch.where(stays, drafted[2], drafted_memory)
        memory = torch.where(stays | takes, true[2], memory)
        accepted, ended = accepted + stays[:, 0], ended + takes[:, 0]
        going = stays

        gain = _gain(p, window.known(window.row + j), before, at, x0)
        before = before._replace(found=torch.ones_like(going), x=at, x0=x0, gain=gain)
        found.append(torch.where(live, x0, 0))
        gains.append(torch.where(live, gain, 0)[:, 0])
    return Verified(
        x.clone(),
        x.new_empty(0) if given.velocities is None else v.clone(),
        memory.clone(),
        torch.stack(found, 1),
        torch.stack(gains, 1),
        (row + accepted + ended).to(torch.int32),
        accepted.to(torch.int32),
    )


def _differences(c, p, kinetic, guess, x0, drafted, true) -> tuple[Tensor, list, Tensor]:
    """m' - m of the position, delta of the two normals, and whether the row is coupled.

    0 in delta where it is not.
    """
    (m, _, origin), (n, _, other) = split(drafted, guess.shape[1]), split(true, guess.shape[1])
    apart = guess - x0
    dx = term(c.x_0, apart) + term(c.x_m, m - n) - term(c.x_d, origin - other)
    out = apart * p.o_0
    dz, dv = term(c.z_o, out), term(c.v_o, out)
    dx, dv = torch.where(kinetic, dz, dx), torch.where(kinetic, dv, 0)
    reach = p.couples != 0
    one = torch.where(kinetic, _over(dv, c.v_1), _over(dx, c.x_n))
    two = torch.where(kinetic, _over(dz - c.z_1 * one, c.z_2), 0)
    return dx, [torch.where(reach, one, 0), torch.where(reach, two, 0)], reach


def _over(value: Tensor, scale: Tensor) -> Tensor:
    return torch.where(scale != 0, value / torch.where(scale != 0, scale, 1), 0)


def _gain(p, known, before, x: Tensor, x0: Tensor) -> Tensor:
    fresh = x - p.r_x * before.x - p.r_0 * before.x0
    dx = torch.where(known.found, x - known.x, fresh)
    d0 = torch.where(known.found, x0 - known.x0, x0 - before.x0)
    square, product = total(dx.square()), total(dx * d0)
    gain = (product / square).to(x.dtype)
    kept = torch.where(before.found, torch.minimum(before.gain * p.g_s, p.g_max), p.g_0)
    kept = torch.where(known.found, known.gain, kept)
    measured = (known.found | before.found) & gain.isfinite()
    gain = torch.minimum(gain.clamp(min=0), p.g_max)
    return torch.where(measured, gain, kept)
