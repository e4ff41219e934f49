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
@pytest.mark.parametrize("memories", [2, 3])
def test_more_memories(implementation, shape, memories):
    call = testing.diffusion_call(*shape, memories=memories)
    assert call.functional()[1].shape == call.args["memory"].shape
    check(call)


@pytest.mark.parametrize("memories", [1, 2, 3])
def test_every_option_together(implementation, memories):
    kind = dict(learned_range=True, memories=memories, unconditional=True)
    call = testing.diffusion_call(6, 21, torch.bfloat16, **kind)
    call.args["row"].copy_(torch.tensor([0, 1, 2, 0, 1, 2]))
    call.options |= testing.guidance_options(call, three_way=True)
    call.options |= {"noise": testing.random_rows(81, 6, 21), "x0_clamp": 0.75}
    call.options["noise_scale"] = torch.linspace(0, 2, 6)
    check(call)


@pytest.mark.parametrize("three_way", [None, False, True])
def test_unconditional_prediction(implementation, three_way):
    """Of the first guidance way, clamped; without guidance the data prediction itself."""
    call = testing.diffusion_call(6, 21, torch.float16, unconditional=True)
    call.args["row"].copy_(torch.tensor([0, 1, 2, 0, 1, 2]))
    call.options["x0_clamp"] = 0.625
    if three_way is not None:
        call.options |= testing.guidance_options(call, three_way)
    check(call)
    row = dict(p_x=0.5, p_o=1.0, x_u=1.0, m_u=-2.0)
    call.args["coef"] = testing.table(COLUMNS, [row])
    call.args["row"].zero_()
    out = call.options.get("uncond_out", call.args["model_out"])
    want = (0.5 * call.args["x"] + out.float()).clamp(-0.625, 0.625)
    x, memory, _ = call.functional()
    assert torch.equal(x, want) and torch.equal(memory, -2 * want)


def test_third_memory_shifts(implementation):
    """memory3 takes the old memory2, which takes the old memory; in place too."""
    call = testing.diffusion_call(3, 8, memories=3)
    call.args["row"].zero_()
    row = dict(p_o=1.0, x_3=2.0, m_0=1.0, s_m=1.0, t_2=1.0)
    call.args["coef"] = testing.table(COLUMNS, [row])
    old = call.args["memory"]
    for x, memory, x0 in (call.functional(), (*call.in_place(), call.args["model_out"])):
        assert torch.equal(x, 2 * old[:, 16:])
        assert torch.equal(memory, torch.cat((x0, old[:, :16]), 1))
    call.args["coef"] = testing.table(COLUMNS, [dict(x_x=1.0)])
    for found in (call.functional(), call.in_place()):
        assert torch.equal(found[0], call.args["x"]) and torch.equal(found[1], old)


def test_a_third_memory_is_read_only_where_it_is_given(implementation):
    call = testing.diffusion_call(2, 10, memories=2)
    plain = call.functional()
    call.args["coef"][:, COLUMNS.index("x_3")] = 0.5
    call.args["coef"][:, COLUMNS.index("t_2")] = 0.5
    for with_columns, without in zip(call.functional(), plain, strict=True):
        assert torch.equal(with_columns, without)


def test_zero_coefficients_drop_nan_of_a_third_memory(implementation):
    call = testing.diffusion_call(2, 10, torch.float32, memories=3)
    call.args["row"].zero_()
    call.options |= testing.guidance_options(call, three_way=False) | {"guidance": torch.ones(1)}
    nan, some = torch.full((2, 10), math.nan), testing.random_rows(90, 2, 10)
    row = dict(p_x=1.0, x_x=0.5, x_u=0.5, m_u=1.0, s_x=1.0, t_2=1.0)
    call.args["coef"] = testing.table(COLUMNS, [row])
    call.args["memory"] = torch.cat((nan, some, nan), 1)
    call.args["model_out"], call.options["uncond_out"] = nan, nan
    assert all(torch.isfinite(t).all() for t in call.functional())
    call.args["coef"] = testing.table(COLUMNS, [row | {"x_3": 0.1, "p_o": 0.1}])
    call.args["model_out"] = some
    x, memory, _ = call.functional()
    assert x.isnan().all() and memory[:, :10].isnan().all()
    assert torch.isfinite(memory[:, 10:]).all()


def test_second_memory_takes_the_old_values(implementation):
    call = testing.diffusion_call(3, 8, memories=2)
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


@pytest.mark.parametrize("memories", [1, 2, 3])
def test_bfloat16_state_rounds_once(implementation, memories):
    """The stored state is the float32 result rounded to the nearest bfloat16."""
    options = dict(state_dtype=torch.bfloat16, memories=memories, unconditional=memories == 3)
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


@pytest.mark.parametrize("memories", [1, 2, 3])
def test_finished_rows_are_copied(implementation, memories):
    call = testing.diffusion_call(4, 9, memories=memories)
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
    call = testing.diffusion_call(2, 10, memories=2)
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
