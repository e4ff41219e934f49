"""The noise address in plain PyTorch: Philox4x32-10 words and Box-Muller normals.

This is the definition that the kernels are tested against. Words are exact (int64 arithmetic);
normals are computed in float64. Source: Salmon et al., "Parallel random numbers: as easy as
1, 2, 3" (SC 2011).
"""

from __future__ import annotations

import math
from enum import IntEnum

import torch
from torch import Tensor

PURPOSE_BITS = 2


class Purpose(IntEnum):
    """What the noise of a draw is for: the low two bits of counter word 1.

    The four values are all there are, so two names may share one where no run can use both at the
    same draw. `JOIN_VELOCITY` and `JOIN_ANCHOR` are drawn where a diffusers run begins within a
    stage, at the draw of the row that it begins with: no initial state is drawn there
    (`INITIAL_STATE` is drawn at draw 0, before the first row), and no row refreshes a velocity.
    `COUPLING_UNIFORM` decides whether a drafted row of a run with a lookahead stays, which tables
    with accept rows do not take. `PATH_NODE` is of a Brownian path, whose increments stand in place
    of the step noise; its draws count the nodes of the path.
    """

    STEP_NOISE = 0
    INITIAL_STATE = 1
    ACCEPT_UNIFORM = 2
    VELOCITY_REFRESH = 3
    JOIN_VELOCITY = 1
    JOIN_ANCHOR = 3
    COUPLING_UNIFORM = 2
    PATH_NODE = 0


def counter_word(draw: Tensor | int, purpose: Purpose = Purpose.STEP_NOISE) -> Tensor | int:
    """Counter word c1 of a draw: 4 draw + purpose."""
    draw = draw.long() if isinstance(draw, Tensor) else draw
    return (draw << PURPOSE_BITS) + int(purpose)


PATH_OCTAVES = 64  # of a Brownian path's time, see brownian_increment
PATH_HEAP_BITS = 24


def path_node(octave: Tensor, heap: Tensor | int) -> Tensor:
    """Counter word c1 of a node of a Brownian path: its octave in [0, 64), and its place in the
    heap of the octave's nodes, in [1, 2^24), 0 for the octave's own increment."""
    return counter_word((octave << PATH_HEAP_BITS) + heap, Purpose.PATH_NODE)


_MASK = 0xFFFFFFFF
_ROUNDS = 10


def _mulhilo(a: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a * m for 32-bit unsigned words held in int64."""
    low_part = (a & 0xFFFF) * m
    high_part = (a >> 16) * m + (low_part >> 16)
    return high_part >> 16, ((high_part & 0xFFFF) << 16) | (low_part & 0xFFFF)


def philox_words(quad: Tensor, counter: Tensor, stream: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    """The four 32-bit words at an address.

    Args:
        quad, counter, stream, key: int64, broadcast against each other. `quad` and `counter` are
            the counter words c0 and c1 (taken modulo 2^32); `stream` fills c2 (low) and c3 (high);
            `key` the two key words (low, high).

    Returns:
        Four int64 tensors of the broadcast shape, each in [0, 2^32).
    """
    c0, c1 = quad & _MASK, counter & _MASK
    c2, c3 = stream & _MASK, (stream >> 32) & _MASK
    k0, k1 = key & _MASK, (key >> 32) & _MASK
    for _ in range(_ROUNDS):
        h0, l0 = _mulhilo(c0, 0xD2511F53)
        h1, l1 = _mulhilo(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = h1 ^ c1 ^ k0, l1, h0 ^ c3 ^ k1, l0
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return tuple(torch.broadcast_tensors(c0, c1, c2, c3))


def box_muller(w_radius: Tensor, w_angle: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent float64 normals from two words: (r cos, r sin)."""
    u = (w_radius.double() + 0.5) * 2.0**-32
    below_one = ((_MASK - w_radius).double() + 0.5) * 2.0**-32
    log_u = torch.where(u > 0.5, torch.log1p(-below_one), u.log())
    radius = torch.sqrt(-2.0 * log_u)
    signed = torch.where(w_angle >= 2**31, w_angle - 2**32, w_angle)
    angle = signed.double() * (2.0 * math.pi * 2.0**-32)
    return radius * angle.cos(), radius * angle.sin()


def _quads(key: Tensor, counter: Tensor, stream: Tensor, count: int) -> tuple[Tensor, ...]:
    quad = torch.arange(count, device=stream.device, dtype=torch.int64)
    return philox_words(quad, counter.long().reshape(-1, 1), stream.reshape(-1, 1), key)


def normals(key: Tensor, counter: Tensor, stream: Tensor, n: int) -> Tensor:
    """One normal per element: float64 `[B, n]`.

    Args:
        key: int64 `[1]`.
        counter: the word c1, int64 `[B]` or `[1]`.
        stream: int64 `[B]`.
        n: elements per sample; quad i // 4 gives elements 4q to 4q + 3 as (cos, sin, cos, sin).
    """
    w0, w1, w2, w3 = _quads(key, counter, stream, (n + 3) // 4)
    pairs = (*box_muller(w0, w1), *box_muller(w2, w3))
    return torch.stack(pairs, -1).flatten(1)[:, :n]


def normal_pairs(key: Tensor, counter: Tensor, stream: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Two normals per element: float64 (Z1, Z2), each `[B, n]`.

    Quad i // 2: element 2q takes (w0, w1)'s pair, element 2q + 1 takes (w2, w3)'s.
    """
    w0, w1, w2, w3 = _quads(key, counter, stream, (n + 1) // 2)
    (e1, e2), (f1, f2) = box_muller(w0, w1), box_muller(w2, w3)
    first, second = torch.stack((e1, f1), -1), torch.stack((e2, f2), -1)
    return first.flatten(1)[:, :n], second.flatten(1)[:, :n]
