"""`diffusion_step` against the float64 reference on identical inputs and the same words."""

from __future__ import annotations

import math

import pytest
import torch

from ardiff_kernels import testing
from ardiff_kernels.ops.diffusion_step import COLUMNS
from ardiff_kernels.testing import assert_within

SHAPES = [(1, 1), (5, 1), (3, 7), (4, 16), (2, 33), (7, 63), (2, 513), (1, 1025), (3, 4099)]


def check(call: testing.Call) -> None:
    for got, exact, bound in zip(
        call.functional(), call.oracle(), testing.diffusion_bounds(call), strict=True
    ):
        assert_within(got, exact, bound)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(implementation, shape):
    check(testing.diffusion_call(*shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("guidance", ["none", "two-way", "three-way"])
def test_model_dtypes_and_guidance(implementation, dtype, guidance):
    call = testing.diffusion_call(5, 37, dtype)
    if guidance != "none":
        call.options |= testing.guidance_options(call, guidance == "three-way")
    check(call)


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (4, 16), (2, 513), (1, 1025)], ids=str)
def test_second_memory(implementation, shape):
    call = testing.diffusion_call(*shape, second_memory=True)
    assert call.functional()[1].shape == call.args["memory"].shape
    check(call)


def test_second_memory_with_every_option(implementation):
    call = testing.diffusion_call(6, 21, torch.bfloat16, learned_range=True, second_memory=True)
    call.args["row"].copy_(torch.tensor([0, 1, 2, 0, 1, 2]))
    call.options |= testing.guidance_options(call, three_way=True)
    call.options |= {"noise": testing.random_rows(81, 6, 21), "x0_clamp": 0.75}
    call.options["noise_scale"] = torch.linspace(0, 2, 6)
    check(call)


def test_second_memory_takes_the_old_values(implementation):
    call = testing.diffusion_call(3, 8, second_memory=True)
    call.args["row"].zero_()
    row = dict(p_o=1.0, x_x=1.0, m_0=1.0, s_m=1.0)
    call.args["coef"] = testing.table(COLUMNS, [row])
    _, memory, x0 = call.functional()
    assert torch.equal(memory[:, :8], x0)
    assert torch.equal(memory[:, 8:], call.args["memory"][:, :8])
    call.args["coef"] = testing.table(COLUMNS, [dict(x_d=1.0)])
    x, memory, _ = call.functional()
    assert torch.equal(x, call.args["x"] - call.args["memory"][:, 8:])
    assert torch.equal(memory, call.args["memory"])


@pytest.mark.parametrize("guided", [False, True])
def test_learned_range_variance(implementation, guided):
    call = testing.diffusion_call(6, 21, learned_range=True)
    call.args["row"].fill_(2)
    if guided:
        call.options |= testing.guidance_options(call, three_way=False)
    check(call)
    other = testing.diffusion_call(6, 21, learned_range=True)
    other.args |= call.args
    other.options |= call.options
    other.args["model_out"] = call.args["model_out"].clone()
    other.args["model_out"][:, 21:] += 1
    assert not torch.equal(call.functional()[0], other.functional()[0])


def test_x0_clamp(implementation):
    call = testing.diffusion_call(4, 50)
    call.options["x0_clamp"] = 0.5
    check(call)
    assert call.functional()[2].abs().max() == 0.5


@pytest.mark.parametrize("second_memory", [False, True])
def test_bfloat16_state_rounds_once(implementation, second_memory):
    """The stored state is the float32 result rounded to the nearest bfloat16."""
    options = dict(state_dtype=torch.bfloat16, second_memory=second_memory)
    call = testing.diffusion_call(5, 41, torch.bfloat16, **options)
    wide = testing.diffusion_call(5, 41, torch.bfloat16, **options)
    for name in call.state:
        wide.args[name] = call.args[name].float()
    for narrow, full in zip(call.functional(), wide.functional(), strict=True):
        assert narrow.dtype == torch.bfloat16
        assert torch.equal(narrow, full.bfloat16())


def test_noise_scale_and_given_noise(implementation):
    call = testing.diffusion_call(6, 19)
    call.options["noise_scale"] = torch.linspace(0, 2, 6)
    check(call)
    call.options["noise"] = testing.random_rows(82, 6, 19)
    check(call)


@pytest.mark.parametrize("second_memory", [False, True])
def test_finished_rows_are_copied(implementation, second_memory):
    call = testing.diffusion_call(4, 9, second_memory=second_memory)
    call.args["row"] = torch.tensor([-1, 3, 0, 2**31 - 1], dtype=torch.int32)
    call.args["model_out"][[0, 1, 3]] = math.nan
    x, memory, x0 = call.functional()
    done = [0, 1, 3]
    assert torch.equal(x[done], call.args["x"][done])
    assert torch.equal(memory[done], call.args["memory"][done])
    assert torch.equal(x0[done], call.args["x"][done])
    assert not torch.equal(x[2], call.args["x"][2])


def test_zero_coefficients_drop_nan(implementation):
    call = testing.diffusion_call(2, 10)
    call.args["row"].zero_()
    call.args["memory"] = torch.full((2, 10), math.nan)
    call.args["model_out"] = torch.full((2, 10), math.nan)
    row = dict(p_x=1.0, x_x=0.5, x_n=0.5, m_x=1.0)
    call.args["coef"] = testing.table(COLUMNS, [row])
    assert all(torch.isfinite(t).all() for t in call.functional())
    call.args["coef"] = testing.table(COLUMNS, [row | {"x_d": 0.1}])
    x, memory, _ = call.functional()
    assert x.isnan().all() and torch.isfinite(memory).all()


def test_zero_coefficients_drop_nan_of_either_memory(implementation):
    call = testing.diffusion_call(2, 10, second_memory=True)
    call.args["row"].zero_()
    first, second = (testing.random_rows(seed, 2, 10) for seed in (90, 91))
    nan = torch.full((2, 10), math.nan)
    row = dict(p_x=1.0, x_x=0.5, m_x=1.0, s_x=1.0)
    call.args["coef"] = testing.table(COLUMNS, [row])
    call.args["memory"] = torch.cat((nan, nan), 1)
    assert all(torch.isfinite(t).all() for t in call.functional())
    call.args["coef"] = testing.table(COLUMNS, [row | {"x_d": 0.1, "s_2": 1.0}])
    call.args["memory"] = torch.cat((nan, second), 1)
    assert all(torch.isfinite(t).all() for t in call.functional())
    call.args["memory"] = torch.cat((first, nan), 1)
    x, memory, _ = call.functional()
    assert x.isnan().all() and memory[:, 10:].isnan().all()
    assert torch.isfinite(memory[:, :10]).all()


def test_memory_stays_where_its_columns_are_zero(implementation):
    call = testing.diffusion_call(3, 8)
    call.args["row"].fill_(1)
    assert torch.equal(call.functional()[1], call.args["memory"])
