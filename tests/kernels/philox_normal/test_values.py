"""`philox_normal` and the noise address: words to the bit, normals within 2e-6."""

from __future__ import annotations

import json

import pytest
import torch

from ardiff_kernels import ops
from ardiff_kernels.ops._shared.address import box_muller, normal_pairs, normals, philox_words
from ardiff_kernels.testing import NORMAL_TOLERANCE
from tests import ROOT

GOLDEN = json.loads((ROOT / "tests/golden" / "philox.json").read_text())


def signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


@pytest.mark.parametrize("case", GOLDEN["random123"], ids=str)
def test_reference_words_are_random123s(case):
    (c0, c1, c2, c3), (k0, k1) = case["ctr"], case["key"]
    tensors = [torch.tensor([signed(v)]) for v in (c0, c1, c3 << 32 | c2, k1 << 32 | k0)]
    assert torch.stack(philox_words(*tensors), -1)[0].tolist() == case["out"]


@pytest.mark.parametrize("case", GOLDEN["addressing"], ids=lambda c: str(c["counter"]))
def test_golden_addresses(implementation, case):
    key, stream = (torch.tensor([signed(case[name])]) for name in ("key", "stream"))
    counter = torch.tensor([case["counter"]])
    words = torch.stack(philox_words(torch.tensor([0, 5]), counter, stream, key), -1).tolist()
    assert words == [case["words_quad0"], case["words_quad5"]]

    expected = torch.tensor(case["normals_first6"], dtype=torch.float64)
    got = ops.philox_normal(key, case["counter"], stream, 6)[0]
    assert (got.double() - expected).abs().max() <= NORMAL_TOLERANCE
    first, second = normal_pairs(key, counter, stream, 3)
    pairs = torch.stack((first[0], second[0]), -1)
    expected = torch.tensor(case["pairs_first3"], dtype=torch.float64)
    assert (pairs - expected).abs().max() <= 1e-12


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (1, 1), (5, 3), (2, 4099), (700, 6)], ids=str)
def test_against_double_precision(implementation, shape):
    rows, n = shape
    stream = torch.arange(rows) * 0x0123_4567_89AB_CDEF + 2**33 - 5
    key = torch.tensor([-0x1234_5678_9ABC_DEF0])
    counter = 2**32 - 3
    got = ops.philox_normal(key, counter, stream, n)
    assert got.shape == shape and got.dtype == torch.float32
    expected = normals(key, torch.tensor([counter]), stream, n)
    if got.numel():
        assert (got.double() - expected).abs().max() <= NORMAL_TOLERANCE
    out = torch.full((rows, n + 2), torch.nan)[:, 1 : n + 1]
    ops.philox_normal_(out, key, counter, stream)
    assert torch.equal(out, got)


def test_a_plain_float32_uniform_would_fail():
    """Negative control: Box-Muller on u rounded to float32 errs far beyond the tolerance."""
    words = torch.tensor([2**32 - 1, 2**32 - 120, 2**32 - 300])
    angle = torch.tensor([5, 9, 2**31 + 1])
    exact, _ = box_muller(words, angle)
    u = ((words.double() + 0.5) * 2.0**-32).float().double()
    signed_angle = torch.where(angle >= 2**31, angle - 2**32, angle)
    plain = (-2 * u.log()).sqrt() * (signed_angle * (2 * torch.pi * 2.0**-32)).cos()
    assert (plain - exact).abs().max() > 50 * NORMAL_TOLERANCE


def test_moments_of_many_normals():
    """Mean, variance and kurtosis of 2^20 normals; each bound is 5.5 standard errors.

    False-alarm rate 3 * 3.8e-8 for a random key (this key is fixed). Negative control: the same
    normals times 1.01 fail the variance.
    """
    n = 2**20
    x = ops.philox_normal(torch.tensor([7]), 0, torch.tensor([1]), n)[0].double()

    def scores(x):
        return torch.stack(
            (x.mean() * n**0.5, (x.square().mean() - 1) * (n / 2) ** 0.5)
            + ((x**4).mean().sub(3) * (n / 96) ** 0.5,)
        ).abs()

    assert scores(x).max() < 5.5
    assert scores(1.01 * x)[1] > 5.5
