"""`head_step` with packed matrices: the bits of plain ones where sums are of floats, else within
the error of PyTorch's modules, and a patch's bits in any company in every way to multiply."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ardiff_kernels import testing
from ardiff_kernels.ops.packed_linear.packing import is_whole, pack
from ardiff_kernels.testing import same_bits
from tests.kernels.head_step.calls import BF16, F32, FORMS, I8, HeadCall, error, head_call

HERE = testing.cpu_dots_here()
pytestmark = pytest.mark.skipif(not HERE, reason="the C++ kernels are not built")


def packed(call: HeadCall, whole: bool = True) -> HeadCall:
    """The call with its matrices packed, all of them or (not `whole`) every other one."""
    weights = list(call.args["weights"])
    for i in range(0, len(weights), 2 if whole else 4):
        assert is_whole(weights[i])
        weights[i] = pack(weights[i])
    return replace(call.changed(weights=weights), exact=call.exact)


CASES = {
    f"{N} of {norm} {mlp} {str(dtype)[6:]}": dict(
        N=N, norm=norm, mlp=mlp, dtype=dtype, ways=ways, width=64, inner=128, outer=F32
    )
    for N, ways in ((1, 1), (2, 2), (5, 1), (11, 3), (70, 1))
    for norm, mlp in FORMS
    for dtype in (F32, BF16, I8)
} | {
    "outer bfloat16": dict(N=4, width=64, inner=96, d=32, dtype=BF16),
    "outer int8": dict(N=4, width=64, inner=128, d=64, dtype=I8, modulation=BF16),
    "long rows": dict(N=9, width=64, inner=2304, depth=1, dtype=BF16, outer=F32),
}


@pytest.mark.parametrize("name", CASES)
def test_common_sums_have_the_bits_of_plain_matrices(name):
    call = head_call(**CASES[name])
    with testing.cpu_dots("common"):
        expected = call.functional()
        for whole in (True, False):
            assert same_bits(packed(call, whole).functional(), expected)


@pytest.mark.parametrize("way", [way for way in HERE if way != "common"])
@pytest.mark.parametrize("name", CASES)
def test_error_of_every_way(way, name):
    """At most that of PyTorch's bfloat16 modules; with int8 weights, whose rows are rounded to 16
    bits, a thousandth of the result."""
    call = head_call(**CASES[name])
    exact = call.oracle()
    limit = 1e-3 * exact.norm().item() if call.args["scales"] else error(call.eager(), exact)
    with testing.cpu_dots(way):
        found = packed(call).functional()
        alone = packed(call.rows([0])).functional()
    assert error(found, exact) <= limit + 2.0**-23 * exact.norm().item()
    assert same_bits(found[:, [0]], alone)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_give_the_same_bits(threads):
    before = torch.get_num_threads()
    for dtype in (F32, BF16, I8):
        call = packed(head_call(3, width=512, dtype=dtype, outer=F32, ways=2))
        try:
            torch.set_num_threads(1)
            alone = call.functional()
            torch.set_num_threads(threads)
            for _ in range(10):
                assert same_bits(call.functional(), alone)
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_other_backends_read_the_packed_form(backend):
    if backend not in testing.usable_backends("head_step"):
        pytest.skip(f"{backend} cannot serve a CPU here")
    call = head_call(2, width=64, inner=64, depth=1)
    from ardiff_kernels import backend as forced

    with forced(backend):
        assert same_bits(packed(call).functional(), call.functional())


def test_a_packed_matrix_of_another_shape_is_refused():
    call = head_call(2, width=64, inner=128)
    call.args["weights"][2] = pack(torch.zeros(128, 72))
    message = (
        r"head_step: weights\[2\] must be a contiguous float32 \[f, 64\] or, on a CPU, its packed "
        r"form, got float32 \[8, 72, 16, 1\]"
    )
    with pytest.raises(RuntimeError, match=message):
        call.functional()
