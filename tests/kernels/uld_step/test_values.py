"""`uld_step` against the float64 reference on identical inputs and the same words."""

from __future__ import annotations

import math

import pytest
import torch

from ardiff_kernels import testing
from ardiff_kernels.ops.uld_step import COLUMNS
from ardiff_kernels.testing import assert_within

SHAPES = [(1, 1), (5, 1), (3, 7), (4, 16), (2, 33), (7, 63), (2, 513), (1, 1025), (3, 2050)]


def check(call: testing.Call) -> None:
    for got, exact, bound in zip(
        call.functional(), call.oracle(), testing.uld_bounds(call), strict=True
    ):
        assert_within(got, exact, bound)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(implementation, shape):
    check(testing.uld_call(*shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("guidance", ["none", "two-way", "three-way"])
def test_model_dtypes_and_guidance(implementation, dtype, guidance):
    call = testing.uld_call(5, 37, dtype)
    if guidance != "none":
        call.options |= testing.guidance_options(call, guidance == "three-way")
    check(call)


def test_half_precision_corner_values(implementation):
    """Subnormal, largest and infinite float16 outputs convert exactly."""
    values = torch.tensor([6e-8, -3e-5, 65504.0, -65504.0, 0.0, 6.1e-5, math.inf]).half()
    call = testing.uld_call(1, len(values))
    call.args["model_out"] = values[None]
    call.args["coef"] = testing.table(COLUMNS, [dict(z_o=1.0)])
    call.args["row"].zero_()
    z, _, _ = call.functional()
    assert torch.equal(z[0], values.float())


def test_noise_scale_and_given_noise(implementation):
    call = testing.uld_call(6, 19)
    call.options["noise_scale"] = torch.linspace(0, 2, 6)
    check(call)
    call.options |= {
        "noise": testing.random_rows(81, 6, 19),
        "noise2": testing.random_rows(82, 6, 19),
    }
    check(call)


@pytest.mark.parametrize("name", ["row", "draw"])
def test_one_row_or_draw_for_all(implementation, name):
    call = testing.uld_call(5, 21)
    expanded = testing.uld_call(5, 21)
    call.args[name] = torch.tensor([1], dtype=torch.int32)
    expanded.args[name] = torch.full((5,), 1, dtype=torch.int32)
    for a, b in zip(call.functional(), expanded.functional(), strict=True):
        assert torch.equal(a, b)


def test_finished_rows_are_copied(implementation):
    call = testing.uld_call(4, 9)
    call.args["row"] = torch.tensor([-1, 3, 0, 2**31 - 1], dtype=torch.int32)
    call.args["model_out"][[0, 1, 3]] = math.nan
    for new, name in zip(call.functional(), call.state, strict=True):
        assert torch.equal(new[[0, 1, 3]], call.args[name][[0, 1, 3]])
    assert not torch.equal(call.functional()[0][2], call.args["z"][2])


def test_zero_coefficients_drop_nan(implementation):
    call = testing.uld_call(3, 10)
    row = dict(z_z=1.0, z_2=0.5, v_1=1.0)
    call.args["coef"] = testing.table(COLUMNS, [row])
    call.args["row"].zero_()
    for name in ("v", "model_out", "anchor"):
        call.args[name] = torch.full((3, 10), math.nan)
    z, v, _ = call.functional()
    assert torch.isfinite(z).all() and torch.isfinite(v).all()
    call.args["coef"] = testing.table(COLUMNS, [row | {"z_d": 0.1}])
    z, v, _ = call.functional()
    assert z.isnan().all() and torch.isfinite(v).all()


def test_batch_and_order_do_not_matter(implementation):
    call = testing.uld_call(6, 35)
    order = torch.tensor([4, 0, 5, 1, 3, 2])
    shuffled = testing.uld_call(6, 35)
    for name, t in call.args.items():
        if name not in ("coef", "key"):
            shuffled.args[name] = t[order]
    for a, b in zip(call.functional(), shuffled.functional(), strict=True):
        assert torch.equal(a[order], b)
    for i in (0, 5):
        alone = testing.uld_call(6, 35)
        for name, t in call.args.items():
            if name not in ("coef", "key"):
                alone.args[name] = t[i : i + 1]
        for a, b in zip(call.functional(), alone.functional(), strict=True):
            assert torch.equal(a[i : i + 1], b)


def centred_rows(s_ab: float, sigma_b: float):
    """An RTK-ULD row for epsilon prediction on the OU path, by direct formulas in float64.

    Returns coefficients on (z, D, v, out, n1, n2), r, and the natural width of the kernel.
    """
    h = -0.5 * math.log1p(-s_ab * s_ab)
    r, s2 = math.exp(-h), -math.expm1(-2 * h)
    curvature = r * r / s2 + 1 / sigma_b**2
    gamma, tau = 2 * math.sqrt(curvature), 0.3 / math.sqrt(curvature)
    x = gamma * tau
    a = -math.expm1(-x)
    b, w = x - a, x - 2 * math.tanh(x / 2)
    kick_z, kick_v = b / gamma**2, a / gamma
    s_v = math.sqrt(-math.expm1(-2 * x))
    row = dict(z_z=1.0, z_d=-kick_z * r * r / s2, z_v=kick_v, z_o=-kick_z / sigma_b)
    row |= dict(z_1=math.tanh(x / 2) / gamma * s_v, z_2=math.sqrt(2 * w) / gamma)
    row |= dict(v_d=-kick_v * r * r / s2, v_v=math.exp(-x), v_o=-kick_v / sigma_b, v_1=s_v)
    return row, r


@pytest.mark.parametrize("s_ab", [1e-2, 1e-3, 1e-4])
def test_centred_velocity_keeps_its_digits(implementation, s_ab):
    rows, d = 4, 500
    row, r = centred_rows(s_ab, sigma_b=1e-2)
    call = testing.uld_call(rows, d)
    call.args["coef"] = testing.table(COLUMNS, [row])
    call.args["row"] = torch.zeros(1, dtype=torch.int32)
    anchor = call.args["anchor"]
    call.args["z"] = anchor + s_ab * testing.random_rows(9, rows, d)
    check(call)

    x_a = (r * anchor.double()).float()
    uncentred = (
        torch.tensor(row["v_d"]) * call.args["z"]
        + torch.tensor(-row["v_d"] / r) * x_a
        + torch.tensor(row["v_v"]) * call.args["v"]
        + torch.tensor(row["v_o"]) * call.args["model_out"]
    )
    exact = row["v_d"] * (call.args["z"].double() - x_a.double() / r)
    exact = exact + row["v_v"] * call.args["v"].double()
    exact = exact + row["v_o"] * call.args["model_out"].double()
    with pytest.raises(AssertionError, match="times the bound"):
        assert_within(uncentred, exact, torch.full_like(exact, 1e-6))
