"""What the Triton kernel of `packed_linear` does beside what every implementation does: one launch
of one tile, whatever the number of rows, and every case of the values interpreted."""

from __future__ import annotations

import pytest

from ardiff_kernels.testing import same_bits
from tests.kernels.packed_linear.calls import (
    BF16,
    CASES,
    COMPANY,
    DTYPES,
    EVERYTHING,
    SMALL,
    excess,
    linear_call,
)

pytest.importorskip("triton")
import ardiff_kernels  # noqa: E402
from ardiff_kernels.dispatch import backends  # noqa: E402
from ardiff_kernels.ops.packed_linear import triton as host  # noqa: E402

pytestmark = pytest.mark.skipif(
    bool(backends.unusable("packed_linear", "triton", "cpu")), reason="triton is not interpreted"
)


@pytest.fixture(autouse=True)
def on_triton():
    with ardiff_kernels.backend("triton"):
        yield


@pytest.mark.parametrize("name", sorted({*CASES} - {*SMALL}))
def test_error_is_within_twice_that_of_pytorch(name):
    call = linear_call(**CASES[name])
    assert excess(call.functional(), call) <= 1


@pytest.mark.parametrize("name", COMPANY)
def test_a_row_has_the_same_bits_in_any_company(name):
    call = linear_call(**COMPANY[name])
    together, N = call.functional(), len(call.args["x"])
    for index in ([0], [N - 1], list(range(N - 1, 1, -1)), [2, 2, 5]):
        assert same_bits(call.rows(index).functional(), together[index])


class Launches:
    """Stands for the kernel and keeps what it is given."""

    def __init__(self, kernel) -> None:
        self.kernel, self.given = kernel, []

    def __getitem__(self, grid):
        def launch(*args, **options):
            self.given.append((grid, args, options))
            return self.kernel[grid](*args, **options)

        return launch


def launches(monkeypatch, call) -> list:
    spy = Launches(host.packed_linear_kernel)
    monkeypatch.setattr(host, "packed_linear_kernel", spy)
    monkeypatch.setattr(host, "interpreted", lambda: False)
    call.functional()
    return spy.given


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_tile_does_not_follow_the_number_of_rows(monkeypatch, dtype):
    """One launch, of 16 rows and a panel a program; what the compiler is told is the same."""
    found = []
    for N in (1, 16, 33):
        call = linear_call(N, columns=64, rows=40, dtype=dtype)
        with monkeypatch.context() as patch:
            ((grid, args, options),) = launches(patch, call)
        assert grid == (3, -(-N // 16))
        found.append((options, args[9:12]))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("columns", [64, 61])
def test_the_kernel_meets_one_alignment(monkeypatch, columns):
    """Rows of x alone, or x in rows that lie anyhow: it begins at 16 bytes and rows at multiples of
    16 elements, since the compiler adds squares in another order where they do not."""
    call = linear_call(4, columns=columns, rows=16, dtype=BF16, x=BF16, **EVERYTHING)
    whole = call.functional()
    plain = call.changed(x=call.args["x"].contiguous())
    for one, expected in ((call, whole), (plain, whole), (plain.rows(slice(1, 2)), whole[1:2])):
        assert same_bits(one.functional(), expected)
        with monkeypatch.context() as patch:
            ((_, args, _),) = launches(patch, one)
        assert args[0].data_ptr() % 16 == 0 and args[12] % 16 == 0
