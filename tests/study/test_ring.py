"""Data along a circle: the ring's width, and the calls that it takes.

A mean square distance of n draws has a relative deviation of at most sqrt(2 / n), here .014: .09
off is beyond 6 of them, 2e-9.
"""

from __future__ import annotations

import pytest
import torch

from ardiff.study import ring


@pytest.mark.parametrize(("dim", "std"), [(4, 0.1), (16, 0.025)])
def test_a_ring_is_as_far_from_its_circle_as_its_width_says(dim, std):
    target = ring.ring(dim, std)
    assert torch.allclose(target.means[:, :2].norm(dim=1), torch.ones(1, dtype=torch.float64))
    gaps = (target.means[1:] - target.means[:-1]).norm(dim=1)
    assert float(gaps.max()) < 1.001 * std
    x = target.sample(10_000, torch.Generator().manual_seed(2))
    # the distance along the tangent adds 3 s^4 / 4 to the radial square: less than .01 of it
    assert float((ring.off_circle(x) / std**2 - 1).abs().max()) < 0.09
    thicker = x * torch.tensor([1.0] * 2 + [1.1] * (dim - 2))
    radius = x[:, :2].norm(dim=1, keepdim=True)
    blurred = torch.cat([x[:, :2] / radius * (1 + 1.1 * (radius - 1)), x[:, 2:]], 1)
    for wrong in (thicker, blurred):
        assert float((ring.off_circle(wrong) / std**2 - 1).abs().max()) > 0.09


def test_the_table_has_the_calls_of_every_place():
    rows = [
        {"solver": solver, "d": d, "s": 0.1, "calls": calls, "error": 0.01}
        for solver, d, calls in (
            ("ddpm", 4, 108.2),
            ("ddpm", 32, None),
            ("ddim", 4, 34.0),
            ("ddim", 32, 45.0),
        )
    ]
    assert ring.markdown(rows).splitlines() == [
        "| calls on the ring | d 4, s 0.1 | d 32, s 0.1 |",
        "| --- | --- | --- |",
        "| `ddpm` | 108 | more |",
        "| `ddim` | 34 | 45 |",
    ]
