"""Increments of a Brownian path in plain PyTorch: the definition of `brownian_increment`.

Time is cut into octaves: octave 0 is [0, 2^-31), octave q >= 1 is [2^(q - 32), 2^(q - 31)). Of a
time t in an octave of length L, W is W at the octave's begin plus sqrt(L) times

    u N(0) + sum over the nodes whose interval holds u of  sqrt(l) / 2 h N(node)

with u in [0, 1) the place of t in the octave, l the share of the octave that the node's interval
takes, and h in [0, 1] the hat function over that interval. Increments are taken term by term.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._shared.address import PATH_OCTAVES, normals, path_node

_PLACE_BITS = 23


def _octave_and_place(time: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Octave, place in units of 2^-23 of it, and the time (float64) that they stand for."""
    first = time < 2.0**-31
    bits = time.view(torch.int32).long()
    octave = torch.where(first, 0, (bits >> _PLACE_BITS) - 127 + PATH_OCTAVES // 2)
    small = (time.double() * 2.0**54).long()
    place = torch.where(first, small, bits & (2**_PLACE_BITS - 1))
    return octave, place, torch.where(first, small.double() * 2.0**-54, time.double())


def _hat(place: Tensor, depth: int) -> Tensor:
    length = 2 ** (_PLACE_BITS - depth)
    inside = place % length
    return torch.minimum(inside, length - inside)


def brownian_increment(key: Tensor, stream: Tensor, start: Tensor, end: Tensor, d: int) -> Tensor:
    start, end = start.expand_as(stream), end.expand_as(stream)
    valid = (start >= 0) & (start < 2.0**32) & (end >= 0) & (end < 2.0**32)
    low = torch.where(valid, torch.minimum(start, end), 0.0)
    high = torch.where(valid, torch.maximum(start, end), 1.0)
    (first, below, begin), (last, above, stop) = _octave_and_place(low), _octave_and_place(high)
    total = torch.zeros(len(stream), d, dtype=torch.float64, device=stream.device)

    def add(octave: Tensor, heap: Tensor | int, difference: Tensor, depth: int) -> None:
        """`difference` places of a hat (of the octave itself: of a line) times its normal."""
        if bool((difference != 0).any()):
            length = 2.0 ** (octave.clamp(min=1) - PATH_OCTAVES // 2).double()
            weight = difference * 2.0**-_PLACE_BITS * (length * 2.0**depth).sqrt()
            normal = normals(key, path_node(octave, heap), stream, d)
            total.add_(weight[:, None] * normal)

    one, places = first == last, 2**_PLACE_BITS
    for octave in range(PATH_OCTAVES):
        from_ = torch.where(first == octave, below, 0)
        to = torch.where(last == octave, above, places)
        crossed = (first <= octave) & (octave <= last)
        add(torch.full_like(first, octave), 0, torch.where(crossed, to - from_, 0), 0)
    for depth in range(_PLACE_BITS):
        one_heap, other_heap = (
            (places + place) >> (_PLACE_BITS - depth) for place in (below, above)
        )
        shared = one & (one_heap == other_heap)
        lost, gained = _hat(below, depth), _hat(above, depth)
        add(first, one_heap, torch.where(shared, 0, -lost), depth)
        add(last, other_heap, torch.where(shared, gained - lost, gained), depth)
    length = (stop - begin)[:, None]
    total = torch.where(length > 0, total / length.sqrt(), 0.0)
    total = torch.where((start > end)[:, None], -total, total)
    return torch.where(valid[:, None], total, torch.nan).float()


def brownian_increment_(
    out: Tensor, key: Tensor, stream: Tensor, start: Tensor, end: Tensor
) -> None:
    out.copy_(brownian_increment(key, stream, start, end, out.shape[1]))
