"""`packed_linear` on every implementation: against float64, PyTorch as the measure, and to the bit
where only the company of a row changes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from ardiff_kernels import pack_linear, testing
from ardiff_kernels.dispatch import backends, cpu
from ardiff_kernels.ops.packed_linear.packing import quantize_rows, unpack
from ardiff_kernels.testing import same_bits
from tests.kernels.kv_attention.calls import INTERPRETED
from tests.kernels.packed_linear.calls import (
    BF16,
    CASES,
    COMPANY,
    DTYPES,
    EVERYTHING,
    F32,
    I8,
    SMALL,
    error,
    excess,
    linear_call,
)


@pytest.fixture
def serving(implementation):
    """The implementation, where it has the op."""
    name, _, variant = implementation.partition("-")
    device = "cuda" if variant == "gpu" else "cpu"
    if reason := backends.unusable("packed_linear", name, device):
        pytest.skip(f"{name}: {reason}")
    return implementation


@pytest.fixture(params=cpu.DOTS)
def dots(request) -> Iterator[str]:
    """A way of the C++ kernels to multiply bfloat16 and int8 data."""
    if "cpu" not in testing.usable_backends("packed_linear"):
        pytest.skip("the C++ kernels have no packed_linear")
    if request.param not in testing.cpu_dots_here():
        pytest.skip("this CPU cannot run it")
    with testing.cpu_dots(request.param):
        yield request.param


@pytest.mark.parametrize("name", CASES)
def test_error_is_within_twice_that_of_pytorch(serving, name):
    if serving in INTERPRETED and name not in SMALL:
        pytest.skip("too many programs for the interpreter")
    call = linear_call(**CASES[name])
    assert excess(call.functional(), call) <= 1


@pytest.mark.parametrize("name", CASES)
def test_every_way_to_multiply(dots, name):
    call = linear_call(**CASES[name])
    assert excess(call.functional(), call) <= 1


@pytest.mark.parametrize("N", range(1, 71))
def test_any_number_of_rows(N):
    call = linear_call(N, columns=30 + 3 * N, rows=17 + N, dtype=DTYPES[N % 3], norm=N % 2 == 0)
    assert excess(call.functional(), call) <= 1


WRONG = ("x", "weight", "scale", "bias", "norm", "eps", "activation", "gate", "up", "residual")


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_would_be_noticed(name):
    """Negative control: a small error in one argument, or in one row or column of it."""
    case = dict(N=3, columns=64, rows=32, activation="swiglu", **EVERYTHING)
    call = linear_call(**case, dtype=I8 if name == "scale" else F32)
    wrong = linear_call(**case, dtype=I8 if name == "scale" else F32)
    o = wrong.options
    if name == "x":
        wrong.args["x"] = wrong.args["x"] + 1e-4
    elif name == "weight":
        wrong.args["weight"] = wrong.args["weight"].roll(1, 1)
    elif name == "up":
        o["bias"] = o["bias"].roll(16)
    elif name == "eps":
        o["eps"] = 1e-3
    elif name == "activation":
        wrong = wrong.changed(activation="none", gate=None, residual=None)
        o = wrong.options
        found = wrong.functional()[:, :16] * call.options["gate"] + call.options["residual"]
        assert excess(found, call) > 20
        return
    elif name == "residual":
        o["residual"] = o["residual"] * 1.0001
    else:
        o[name] = o[name].clone()
        o[name][..., 5] *= 1.1
    assert excess(wrong.functional(), call) > 20


@pytest.mark.parametrize("columns", [64, 512])
def test_int8_error(serving, columns):
    """Rounding a matrix to int8 with the absmax of each row costs its own relative error."""
    if serving in INTERPRETED:
        pytest.skip("too many programs for the interpreter")
    generator = torch.Generator("cpu").manual_seed(1)
    matrix = torch.randn(64, columns, generator=generator, device="cpu")
    codes, scale = quantize_rows(matrix)
    relative = ((codes * scale[:, None] - matrix).norm() / matrix.norm()).item()
    call = linear_call(32, columns=columns, rows=64, dtype=I8)
    packed = pack_linear(matrix.to(torch.get_default_device()), I8)
    call.args["weight"], call.options["scale"] = packed.weight, packed.scale
    exact = call.args["x"].double() @ matrix.to(torch.get_default_device()).double().T
    found = error(call.functional(), exact) / exact.norm().item()
    assert 0.5 * relative < found < 1.5 * relative < 0.02


@pytest.mark.parametrize("name", COMPANY)
def test_a_row_has_the_same_bits_in_any_company(serving, name):
    """Alone, doubled, and in another order."""
    if serving in INTERPRETED and name not in ("float32", "int8"):
        pytest.skip("too many programs for the interpreter")
    assert_the_same_in_any_company(linear_call(**COMPANY[name]))


@pytest.mark.parametrize("name", COMPANY)
def test_company_in_every_way_to_multiply(dots, name):
    assert_the_same_in_any_company(linear_call(**COMPANY[name]))


def assert_the_same_in_any_company(call):
    together, N = call.functional(), len(call.args["x"])
    for n in (0, N // 2, N - 1):
        assert same_bits(call.rows([n]).functional(), together[[n]])
    order = torch.randperm(N, generator=torch.Generator("cpu").manual_seed(1), device="cpu")
    order = torch.cat([order, order[:3]]).to(together.device)
    assert same_bits(call.rows(order).functional(), together[order])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_number_of_rows_gives_the_same_bits(dtype):
    """Through every path of the kernels: few rows, blocks of rows, and their rests."""
    call = linear_call(72, columns=300, rows=72, dtype=dtype, **EVERYTHING)
    together = call.functional()
    for N in range(1, 72, 3):
        assert same_bits(call.rows(list(range(N))).functional(), together[:N])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_nan_row_spoils_no_other(serving, dtype):
    call = linear_call(12, columns=75, rows=40, dtype=dtype, **EVERYTHING)
    clean = call.functional()
    call.args["x"][5] = math.nan
    spoilt = call.functional()
    keep = [n for n in range(12) if n != 5]
    assert spoilt[5].isnan().all() and same_bits(spoilt[keep], clean[keep])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite_shows(serving, dtype, value):
    """One element of a row: no finite number comes of it."""
    call = linear_call(3, columns=75, rows=40, dtype=dtype)
    clean = call.functional()
    call.args["x"][1, 7] = value
    spoilt = call.functional()
    assert not spoilt[1].isfinite().any() and same_bits(spoilt[[0, 2]], clean[[0, 2]])


def test_zeros(serving):
    """A row of zeros has no magnitude to scale by, and no norm."""
    for dtype in DTYPES:
        call = linear_call(3, columns=75, rows=40, dtype=dtype, norm=True, bias=True)
        call.args["x"][1] = 0
        found = call.functional()
        assert excess(found, call) <= 1 and same_bits(found[1], call.options["bias"])


def test_several_matrices_are_one_below_the_other(serving):
    generator = torch.Generator("cpu").manual_seed(1)
    parts = [torch.randn(n, 40, generator=generator, device="cpu") for n in (20, 5, 7)]
    parts = [part.to(torch.get_default_device()) for part in parts]
    x = torch.ones(2, 40)
    for dtype in DTYPES:
        whole = pack_linear(parts, dtype)
        y = torch.ops.ardiff.packed_linear(x, whole.weight, whole.rows, scale=whole.scale)
        for part, of_part in zip(parts, y.split([20, 5, 7], 1), strict=True):
            own = pack_linear(part, dtype)
            alone = torch.ops.ardiff.packed_linear(x, own.weight, own.rows, scale=own.scale)
            torch.testing.assert_close(alone, of_part, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (16, 64), (17, 65), (40, 31)])
def test_packing_keeps_every_element(dtype, shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    packed = pack_linear(matrix, dtype)
    expected = quantize_rows(matrix)[0] if dtype == I8 else matrix.to(dtype)
    assert torch.equal(unpack(packed.weight, *shape), expected)
    assert packed.weight.count_nonzero() == expected.count_nonzero()  # zeros elsewhere


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_threads_give_the_same_bits(threads):
    before = torch.get_num_threads()
    for dtype in DTYPES:
        call = linear_call(20, columns=512, rows=200, dtype=dtype, **EVERYTHING)
        try:
            torch.set_num_threads(1)
            alone = call.functional()
            torch.set_num_threads(threads)
            for _ in range(20):
                assert same_bits(call.functional(), alone)
        finally:
            torch.set_num_threads(before)


@pytest.mark.skipif(len(testing.cpu_isas()) < 2, reason="one instruction set only")
@pytest.mark.parametrize("isa", [name for name in testing.cpu_isas() if name != "scalar"])
@pytest.mark.parametrize("name", COMPANY)
def test_instruction_sets_agree_to_the_bit(isa, name):
    if "cpu" not in testing.usable_backends("packed_linear"):
        pytest.skip("the C++ kernels have no packed_linear")
    call = linear_call(**COMPANY[name])
    with testing.cpu_dots("common"):
        with testing.cpu_isa("scalar"):
            expected = call.functional()
        with testing.cpu_isa(isa):
            assert same_bits(call.functional(), expected)


@pytest.mark.parametrize("name", SMALL)
def test_opcheck(serving, name):
    if serving in INTERPRETED:
        pytest.skip("too many programs for the interpreter")
    call = linear_call(**SMALL[name])
    whole = {"x": call.args["x"], **call.options}
    call = call.changed(**{k: v.contiguous() for k, v in whole.items() if torch.is_tensor(v)})
    torch.library.opcheck(
        torch.ops.ardiff.packed_linear.default, tuple(call.args.values()), call.options
    )


def test_compile_fullgraph(monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    up = linear_call(3, columns=64, rows=96, dtype=BF16, activation="swiglu", norm=True)
    down = linear_call(3, columns=48, rows=64, dtype=BF16, gate="shared")

    def block(x):
        op = torch.ops.ardiff.packed_linear
        h = op(x, up.args["weight"], 96, **up.options)
        return op(h, down.args["weight"], 64, **down.options | {"residual": x}) * 2

    x = up.args["x"]
    torch.compiler.reset()
    assert same_bits(torch.compile(block, fullgraph=True)(x), block(x))
