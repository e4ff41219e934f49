"""`brownian_increment`: increments of one path, whichever intervals they are asked for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import ardiff_kernels
from ardiff_kernels import ops, testing
from ardiff_kernels.ops._shared.address import normals, path_node

KEY = torch.tensor([-0x1234_5678_9ABC_DEF0])
TOLERANCE = 2 * testing.NORMAL_TOLERANCE  # of a sum whose coefficients have the root of squares 1
COMPOSED = 2e-6


def streams(rows: int) -> Tensor:
    return torch.arange(rows) * 2**20 + 7


def on_grid(time: Tensor) -> Tensor:
    """The time that a float32 stands for, float64: below 2^-31 a multiple of 2^-54."""
    exact = time.double()
    return torch.where(time < 2.0**-31, (exact * 2.0**54).floor() * 2.0**-54, exact)


def times(rows: int, seed: int) -> Tensor:
    """Three rising times for each row `[3, rows]`: octaves apart, near each other and tiny."""
    random = torch.Generator().manual_seed(seed)
    spread = torch.rand(3, rows, generator=random)
    found = torch.exp2(62.5 * spread - 31)
    near = torch.exp2(60 * spread[:1] - 30)
    apart = torch.exp2(-20 * torch.rand(rows, generator=random))
    found[:, 1::3] = (near * (1 + apart * spread))[:, 1::3]
    found[:, 2::6] = torch.exp2(spread * 22 - 53)[:, 2::6]
    found[0, 3::5] = 0.0
    return found.sort(0).values


def increments(start: Tensor, end: Tensor, d: int) -> Tensor:
    return ops.brownian_increment(KEY, streams(max(len(start), len(end))), start, end, d)


def gap(start: Tensor, middle: Tensor, end: Tensor, d: int) -> Tensor:
    """How far the increments of both parts are from that of the whole, in its deviations."""
    a, m, b = (on_grid(t)[:, None] for t in (start, middle, end))
    first, second = increments(start, middle, d).double(), increments(middle, end, d).double()
    parts = ((m - a).sqrt() * first + (b - m).sqrt() * second) / (b - a).sqrt()
    return (parts - increments(start, end, d).double()).abs()


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (1, 1), (37, 3), (3, 515)], ids=str)
def test_against_double_precision(implementation, shape):
    rows, d = shape
    start, _, end = times(rows, seed=rows)
    got = increments(start, end, d)
    assert got.shape == shape and got.dtype == torch.float32
    with ardiff_kernels.backend("reference"):
        expected = increments(start, end, d)
    if got.numel():
        assert (got - expected).abs().max() <= TOLERANCE


def test_in_place_and_backwards(implementation):
    start, _, end = times(1, seed=2)
    got, rows, d = increments(start, end, 131), 1, 131
    out = torch.full((rows, d + 2), torch.nan)[:, 1 : d + 1]
    ops.brownian_increment_(out, KEY, streams(rows), start, end)
    assert torch.equal(out, got)
    assert torch.equal(increments(end, start, d), -got)


def test_one_time_for_all_samples_is_that_of_each(implementation):
    one, each = torch.tensor([0.75]), torch.tensor([2.0, 3.0, 100.0])
    got = increments(one, each, 6)
    assert torch.equal(got, increments(one.expand(3).contiguous(), each, 6))
    alone = ops.brownian_increment(KEY, streams(3)[2:], one, each[2:], 6)
    assert torch.equal(got[2:], alone)


def test_the_definition_by_hand(implementation):
    """Whole octaves; half of one, with the node of depth 0; three quarters, with one of depth 1."""

    def normal(octave: int, heap: int) -> Tensor:
        return normals(KEY, path_node(torch.tensor([octave]), heap), streams(1), 8)

    def increment(start: float, end: float) -> Tensor:
        return increments(torch.tensor([start]).float(), torch.tensor([end]).float(), 8).double()

    whole, next_one = normal(32, 0), normal(33, 0)  # [1, 2) and [2, 4)
    assert (increment(1, 2) - whole).abs().max() < TOLERANCE
    both = (whole + math.sqrt(2) * next_one) / math.sqrt(3)
    assert (increment(1, 4) - both).abs().max() < TOLERANCE
    half = (whole / 2 + normal(32, 1) / 2) / math.sqrt(0.5)
    assert (increment(1, 1.5) - half).abs().max() < TOLERANCE
    quarter = (0.25 * whole - 0.25 * normal(32, 1) + math.sqrt(0.5) / 2 * normal(32, 3)) / 0.5
    assert (increment(1.5, 1.75) - quarter).abs().max() < TOLERANCE
    assert (increment(0, 2.0**-31) - normal(0, 0)).abs().max() < TOLERANCE


def test_adjacent_increments_make_up_the_whole(implementation):
    start, middle, end = times(60, seed=3)
    assert gap(start, middle, end, 24).max() < COMPOSED


def test_many_adjacent_increments_make_up_the_whole():
    """Half a million elements, also at intervals of one unit in the last place."""
    start, middle, end = times(1000, seed=4)
    one_up = torch.nextafter(start, torch.tensor(torch.inf))
    kept = (start >= 2.0**-31) & (one_up < end)
    middle = torch.where(kept & (torch.arange(1000) % 4 == 0), one_up, middle)
    assert gap(start, middle, end, 512).max() < COMPOSED


def test_equal_times_and_times_outside(implementation):
    same, bad = [0.0, 1.5, 2.0**-40, 3e9], [-1.0, 2.0**32, torch.inf, torch.nan]
    start = torch.tensor(same + bad + [1.0] * 4 + bad)
    end = torch.tensor(same + [1.0] * 4 + bad + bad)
    got = increments(start, end, 5)
    assert torch.equal(got[:4], torch.zeros(4, 5)) and got[4:].isnan().all()


EDGES = torch.distributions.Normal(0.0, 1.0).icdf(torch.arange(1, 64, dtype=torch.float64) / 64)


def chi_square(x: Tensor) -> float:
    """Pearson's statistic over 64 equally likely intervals: above 140 with probability < 1e-6."""
    counts = torch.bincount(torch.bucketize(x.flatten(), EDGES), minlength=64).double()
    expected = x.numel() / 64
    return float(((counts - expected) ** 2 / expected).sum())


def test_increments_are_standard_normals():
    """10^7 draws over intervals of all kinds, by variance (5 standard errors, 6e-7) and by
    distribution (chi-square, 1e-7); fixed seed. Rejected: a bridge whose first node has .99 of its
    deviation."""
    rows, d = 2500, 4000
    start, _, end = times(rows, seed=5)
    x = increments(start, end, d).double()
    spread = math.sqrt(x.numel() / 2)
    assert abs(x.square().mean() - 1) * spread < 5
    assert chi_square(x) < 140
    whole, node = (
        normals(KEY, path_node(torch.tensor([32]), heap), streams(rows), d) for heap in (0, 1)
    )
    for factor, accepted in ((1.0, True), (0.99, False)):
        bridge = (whole + factor * node) / math.sqrt(2)
        assert (abs(bridge.square().mean() - 1) * spread < 5) == accepted
        assert accepted == (chi_square(bridge) < 140)


def test_increments_of_disjoint_intervals_are_uncorrelated():
    """120 pairs of 16 intervals over 12 octaves, 2^16 elements: each correlation within 5.8 of its
    standard errors, false-alarm rate 8e-7; fixed seed. Rejected: intervals that overlap by 1/8."""
    n = 2**16
    edges = torch.exp2(torch.linspace(-6, 6, 17))

    def correlations(start: Tensor, end: Tensor) -> Tensor:
        stream = streams(1).expand(len(start)).contiguous()
        x = ops.brownian_increment(KEY, stream, start, end, n).double()
        return (x @ x.T / n).fill_diagonal_(0).abs().max() * math.sqrt(n)

    assert correlations(edges[:-1], edges[1:]) < 5.8
    assert correlations(edges[:-1], edges[1:] + (edges[1:] - edges[:-1]) / 8) > 5.8
