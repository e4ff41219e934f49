"""Triton kernel of `brownian_increment`: one program writes a tile, one Philox quad per lane, and
sums the terms of `csrc/math/brownian.h`, which has the comments."""

import torch
import triton
import triton.language as tl

from .._shared.triton.common import (
    at_sample,
    counter_word,
    interleave4,
    quad_normals,
    quads,
    store_tile,
    tile,
)
from .._shared.triton.launch import launch, shared
from .._shared.triton.names import HEAP_SHIFT, PURPOSE

PLACE_BITS = tl.constexpr(23)
PLACES = tl.constexpr(1 << 23)


@triton.jit
def path_time(t):
    """Octave (int32), place in it (int32), and the time that they stand for."""
    first = t < 4.656612873077393e-10  # 2^-31
    bits = t.to(tl.int32, bitcast=True)
    small = (tl.where(first, t, 0.0) * 18014398509481984.0).to(tl.int32)  # 2^54
    octave = tl.where(first, 0, (bits >> PLACE_BITS) - 95)
    place = tl.where(first, small, bits & (PLACES - 1))
    return octave, place, tl.where(first, small.to(tl.float32) * 5.551115123125783e-17, t)


@triton.jit
def hat(place, depth):
    """How far a place lies from the nearer end of its interval at a depth."""
    length = PLACES >> depth
    inside = place & (length - 1)
    return tl.minimum(inside, length - inside)


@triton.jit
def add_term(coefficient, normal, total, carry):
    """total + coefficient * normal, with Kahan's carry of what the total rounds away."""
    part = tl.fma(normal, coefficient, carry)
    both = total + part
    return both, (total - both) + part


@triton.jit
def brownian_increment_kernel(
    out_ptr, key_ptr, stream_ptr, start_ptr, end_ptr, out_stride, B, d, nd,
    START_SHARED: tl.constexpr, END_SHARED: tl.constexpr,
    BR: tl.constexpr, BD: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    sample, col, lane, mask = tile(B, d, nd, BR, BD, ALIGN)
    stream = tl.load(stream_ptr + sample)
    start = at_sample(start_ptr, sample, START_SHARED)
    end = at_sample(end_ptr, sample, END_SHARED)
    if not (START_SHARED and END_SHARED):  # then both have the shape of the samples
        zero = (stream * 0).to(tl.float32)
        start += zero
        end += zero
    top = 4294967296.0
    valid = (start >= 0.0) & (start < top) & (end >= 0.0) & (end < top)
    low_octave, low_place, low = path_time(tl.where(valid, tl.minimum(start, end), 0.0))
    high_octave, high_place, high = path_time(tl.where(valid, tl.maximum(start, end), 1.0))
    length = high - low
    scale = tl.where(length > 0.0, 1.0 / tl.sqrt(tl.where(length > 0.0, length, 1.0)), 0.0)
    scale = tl.where(valid, tl.where(start <= end, scale, -scale), float("nan"))
    octaves = high_octave - low_octave
    most = octaves
    if octaves.shape != ():
        most = tl.max(tl.max(octaves, 1), 0)
    one = octaves == 0
    zeros = quads(col, 1, BR, BD).to(tl.float32) * 0.0
    a, b, c, d_ = zeros, zeros, zeros, zeros
    a_low, b_low, c_low, d_low = zeros, zeros, zeros, zeros
    for i in range(most + (2 * PLACE_BITS + 1)):
        depth = PLACE_BITS - 1 - (i >> 1)
        if depth >= 0:
            below, above = low_place >> (PLACE_BITS - depth), high_place >> (PLACE_BITS - depth)
            common = one & (below == above)
            if (i & 1) != 0:
                difference = hat(high_place, depth) - tl.where(common, hat(low_place, depth), 0)
                octave, heap = high_octave, (1 << depth) | above
            else:
                difference = tl.where(common, 0, -hat(low_place, depth))
                octave, heap = low_octave, (1 << depth) | below
        else:
            depth = 0
            passed = octaves * 0 + (i - 2 * PLACE_BITS)
            octave = tl.minimum(low_octave + passed, high_octave)
            heap = octave * 0
            difference = tl.where(passed == octaves, high_place, PLACES)
            difference -= tl.where(passed == 0, low_place, 0)
            # Of a sample with fewer octaves than another one of the tile.
            difference = tl.where(passed > octaves, 0, difference)
        exponent = tl.maximum(octave, 1) - 32 + depth
        root = tl.where((exponent & 1) != 0, 1.4142135623730951, 1.0)
        power = (((exponent >> 1) + (127 - PLACE_BITS)) << PLACE_BITS).to(tl.float32, bitcast=True)
        coefficient = difference.to(tl.float32) * (root * power)
        c1 = counter_word((octave << HEAP_SHIFT) | heap, PURPOSE.PATH_NODE)
        # A scalar that is 0 spares the normals; of several samples one may need them.
        needed = True
        if coefficient.shape == ():
            needed = coefficient != 0.0
        if needed:
            p, q, r, s = quad_normals(col, c1, key_ptr, stream, BR, BD)
            a, a_low = add_term(coefficient, p, a, a_low)
            b, b_low = add_term(coefficient, q, b, b_low)
            c, c_low = add_term(coefficient, r, c, c_low)
            d_, d_low = add_term(coefficient, s, d_, d_low)
    total = interleave4(a * scale, b * scale, c * scale, d_ * scale, BR, BD)
    store_tile(out_ptr, total, sample, out_stride, col, lane, mask, ALIGN)


def brownian_increment_(
    out: torch.Tensor,
    key: torch.Tensor,
    stream: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
) -> None:
    flags = {"START_SHARED": shared(start), "END_SHARED": shared(end)}
    launch(brownian_increment_kernel, (out,), (key, stream, start, end), **flags)


def brownian_increment(
    key: torch.Tensor, stream: torch.Tensor, start: torch.Tensor, end: torch.Tensor, d: int
) -> torch.Tensor:
    out = torch.empty(stream.shape[0], d, dtype=torch.float32, device=stream.device)
    brownian_increment_(out, key, stream, start, end)
    return out
