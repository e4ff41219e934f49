"""`mala_accept` against the float64 reference on identical inputs and the same words."""

from __future__ import annotations

import math

import pytest
import torch

from ardiff_kernels import ops, testing
from ardiff_kernels.ops.mala_accept import COLUMNS
from tests.kernels.mala_accept.calls import (
    ROWS,
    accept_call,
    assert_same,
    check,
    check_energies,
    energies_call,
)
from tests.kernels.test_contract import sparse_storage

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
CASES = [
    (1, 1, F32, "trapezoid", False, False),
    (7, 3, F16, "simpson", True, True),
    (300, 33, BF16, "energies", True, True),
    (40, 300, F32, "trapezoid", True, False),
    (9, 256, F32, "energies", False, True),
    (3, 9001, F32, "simpson", False, False),
    (2, 2**16, F32, "trapezoid", False, True),
    (2, 2**16 + 3, BF16, "energies", True, False),
]


def finished(call):
    call.args["row"][::4] = -1
    call.args["row"][3::4] = len(ROWS)
    return call


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_float64(implementation, case):
    call = accept_call(*case)
    check(call, call.functional())


def test_ties_are_rare(implementation):
    call = accept_call(20000, 5, seed=3)
    results = call.functional()
    ties = check(call, results)
    assert ties <= 5, ties
    assert 0.1 < results[4].float().mean() < 0.9


@pytest.mark.parametrize("case", [CASES[1], CASES[2], CASES[3]], ids=str)
def test_in_place_twin_gives_the_same_bits(implementation, case):
    call = finished(accept_call(*case))
    for a, b in zip(call.in_place(), call.functional(), strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("case", [CASES[2], (6, 5000, F32, "simpson", False, True)], ids=str)
def test_batch_order_and_threads_do_not_matter(implementation, case):
    call = accept_call(*case)
    whole = call.functional()
    order = (7 * torch.arange(case[0]) + 3) % case[0]  # 7 divides neither size
    for a, b in zip(whole, call.rows(order).functional(), strict=True):
        assert_same(a[order] if len(a) else a, b)
    for i in (0, case[0] - 1):
        index = torch.tensor([i])
        for a, b in zip(whole, call.rows(index).functional(), strict=True):
            assert_same(a[index] if len(a) else a, b)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        for a, b in zip(whole, call.functional(), strict=True):
            assert_same(a, b)
    finally:
        torch.set_num_threads(threads)


def test_finished_rows_are_copied(implementation):
    call = finished(accept_call(9, 6, F32, "energies", velocity=True))
    done = (call.args["row"] < 0) | (call.args["row"] >= len(ROWS))
    call.args["y"][done] = math.nan
    x, out, v, energy, accepted, log_alpha = call.functional()
    for got, kept in ((x, call.args["y"]), (out, call.args["out_y"]), (v, call.options["v_y"])):
        assert_same(got[done], kept[done])
    assert torch.equal(energy[done], call.options["energy_y"][done])
    assert not accepted[done].any() and (log_alpha[done] == 0).all()
    assert (log_alpha[~done] != 0).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_proposals_are_rejected(implementation, value):
    """One bad value anywhere, also where every coefficient is zero."""
    call = accept_call(6, 300, F32, "energies", velocity=True)
    call.args["coef"] = testing.table(COLUMNS, [dict(c_v=1.0), dict(c_d=-0.5, g_o=1.0)])
    call.args["row"] = torch.tensor([0, 1, 0, 1, 0, 1], dtype=torch.int32)
    call.args["y"][0, 299] = value
    call.args["out_y"][1, 7] = value
    call.args["out_y"][2, 255] = value
    call.options["energy_y"][3] = value
    call.options["v_y"][4, 0] = value
    results = call.functional()
    assert (results[5][:5] == -math.inf).all() and results[5][5].isfinite()
    assert not results[4][:5].any()
    assert_same(results[0][:5], call.args["x"][:5])
    assert_same(results[2][:5], -call.options["v_x"][:5])


@pytest.mark.parametrize("d", [1, 5, 700])
def test_an_origin_without_density_is_left(implementation, d):
    call = energies_call(d)
    check_energies(call, call.functional())
    check_energies(call, call.in_place())


def test_zero_coefficients_drop_nan(implementation):
    call = accept_call(4, 40, F32, "simpson", velocity=True)
    call.args["coef"] = testing.table(COLUMNS, [dict(g_z=1.0, c_g=0.1)])
    call.args["row"].zero_()
    for name in ("out_x", "anchor"):
        call.args[name] = torch.full((4, 40), math.nan)
    for name in ("out_mid", "v_x", "v_y"):
        call.options[name] = torch.full((4, 40), math.nan)
    log_alpha = call.functional()[5]
    assert log_alpha.isfinite().all()
    x, y = call.args["x"].double(), call.args["y"].double()
    exact = 0.1 * (x.square() - y.square()).sum(1)
    assert ((log_alpha - exact).abs() <= 1e-5 * (x.square() + y.square()).sum(1)).all()
    call.args["coef"] = testing.table(COLUMNS, [dict(g_z=1.0, g_d=1.0, c_g=0.1)])
    assert (call.functional()[5] == -math.inf).all()


def test_projection_looks_at_the_proposal(implementation):
    """With log_alpha 0 (always accepted): the ball around the origin of space, and around x."""
    x = torch.tensor([[3.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 3.0]])
    y = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.5, 0.0], [0.0, 1.5], [0.0, 3.1]])
    call = accept_call(5, 2)
    call.args |= {"x": x, "y": y, "coef": testing.table(COLUMNS, [dict(R2=4.0), dict(r2=1.0)])}
    call.args["row"] = torch.tensor([0, 0, 1, 1, 0], dtype=torch.int32)
    assert call.functional()[4].tolist() == [True, False, False, True, False]
    call.options["ball_radius"] = torch.tensor([0.9, 3.1, 0.4, 1.6, 0.0])
    results = call.functional()
    assert results[4].tolist() == [False, True, False, True, True]
    assert (results[5] == 0).all()


def test_one_row_draw_and_radius_for_all(implementation):
    call, expanded = (accept_call(5, 21, ball=True) for _ in range(2))
    for name, value in (("row", 1), ("draw", 7)):
        call.args[name] = torch.tensor([value], dtype=torch.int32)
        expanded.args[name] = torch.full((5,), value, dtype=torch.int32)
    radius = call.options["ball_radius"][2:3].clone()
    call.options["ball_radius"], expanded.options["ball_radius"] = radius, radius.repeat(5)
    for a, b in zip(call.functional(), expanded.functional(), strict=True):
        assert_same(a, b)


def test_empty_batch_and_shared_rows(implementation):
    results = accept_call(0, 7, F32, "energies", velocity=True).functional()
    assert [tuple(t.shape) for t in results] == [(0, 7)] * 3 + [(0,)] * 3
    call = accept_call(4, 12)
    for name in ("x", "anchor", "out_x"):
        call.args[name] = call.args[name][:1].expand(4, 12)
    got = call.functional()
    call.args = {name: t.clone().contiguous() for name, t in call.args.items()}
    for a, b in zip(got, call.functional(), strict=True):
        assert a.is_contiguous()
        assert_same(a, b)


def test_offsets_past_2_to_31(implementation, tmp_path):
    d, stride = 20, 2**30 + 64
    call, wide = accept_call(3, d), accept_call(3, d)
    moved = ("x", "y", "out_x", "out_y", "anchor")
    size = 2 * stride + 64 * len(moved)
    storage = sparse_storage(tmp_path, size)
    for i, name in enumerate(moved):
        wide.args[name] = storage.as_strided((3, d), (stride, 1), 64 * i).copy_(call.args[name])
    expected = call.functional()
    for a, b in zip(wide.functional(), expected, strict=True):
        assert_same(a, b)
    marks = {"accepted": torch.zeros(3, dtype=torch.bool), "log_alpha": torch.zeros(3)}
    ops.mala_accept_(*wide.args.values(), **marks)
    assert_same(wide.args["y"], expected[0])


def test_opcheck(implementation):
    call = accept_call(4, 9, BF16, "energies", velocity=True, ball=True)
    args = tuple(t.clone().contiguous() for t in call.args.values())
    options = {name: t.clone().contiguous() for name, t in call.options.items()}
    torch.library.opcheck(torch.ops.ardiff.mala_accept.default, args, options)
    options |= {"accepted": torch.zeros(4, dtype=torch.bool), "log_alpha": torch.zeros(4)}
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.ardiff.mala_accept_.default, args, options, test_utils=tests)


def test_compile_fullgraph(monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    call = accept_call(5, 33)
    wide = torch.zeros(6, 40)[1:, 3:36]
    call.args["y"] = wide.copy_(call.args["y"])

    def twice(x, y, *rest):
        first = ops.mala_accept(x, y, *rest)
        return ops.mala_accept(first[0], 2 * first[0] - y, *rest)

    torch.compiler.reset()
    got = torch.compile(twice, fullgraph=True)(*call.args.values())
    for a, b in zip(got, twice(*call.args.values()), strict=True):
        assert_same(a, b)


@pytest.mark.skipif(len(testing.cpu_isas()) < 2, reason="one instruction set only")
@pytest.mark.parametrize("isa", [name for name in testing.cpu_isas() if name != "scalar"])
def test_instruction_sets_agree_to_the_bit(isa):
    for case in [
        *CASES,
        (33, 17, F32, "simpson", True, False),
        (3, 520, F16, "energies", True, True),
    ]:
        call = accept_call(*case)
        with testing.cpu_isa("scalar"):
            expected = call.functional()
        with testing.cpu_isa(isa):
            for a, b in zip(call.functional(), expected, strict=True):
                assert_same(a, b)
