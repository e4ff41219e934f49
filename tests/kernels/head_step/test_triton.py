"""What the Triton kernels of `head_step` do beside what every implementation does: two ways through
a head, by the number of rows, and one that no other row changes."""

from __future__ import annotations

import math

import pytest
import torch

from ardiff_kernels.testing import same_bits
from tests.kernels.head_step.calls import BF16, F32, FORMS, I8, excess, head_call

pytest.importorskip("triton")
import ardiff_kernels  # noqa: E402
from ardiff_kernels.dispatch import backends  # noqa: E402
from ardiff_kernels.ops.head_step import triton as host  # noqa: E402

pytestmark = pytest.mark.skipif(
    bool(backends.unusable("head_step", "triton", "cpu")), reason="triton is not interpreted"
)
SMALL = dict(depth=1, d=5, out=33)


@pytest.fixture(autouse=True)
def on_triton():
    with ardiff_kernels.backend("triton"):
        yield


@pytest.mark.parametrize("N", [1, 3, 20])
@pytest.mark.parametrize("dtype", [F32, BF16, I8], ids=str)
@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_error_is_within_twice_that_of_pytorch(form, dtype, N):
    """Odd widths for some, and each number of conditions."""
    i = FORMS.index(form) + [F32, BF16, I8].index(dtype) + N
    width, inner = ((48, 64), (37, 29), (51, 19))[i % 3]
    call = head_call(
        N, *form, width, inner=inner, dtype=dtype, ways=1 + i % 3, shared=N == 3,
        modulation=BF16 if dtype == BF16 else F32, **SMALL,
    )  # fmt: skip
    assert excess(call.functional(), call) <= 1


@pytest.mark.parametrize("case", [(F32, 17), (BF16, 17), (I8, 2), (F32, 2)], ids=str)
def test_rows_of_several_steps(case):
    """Columns past those that a program takes at a time, and a rest."""
    dtype, N = case
    call = head_call(N, "rms", "gated", 300, inner=270, dtype=dtype, depth=1)
    assert excess(call.functional(), call) <= 1


@pytest.mark.parametrize("N", [3, 20])
def test_a_row_far_from_zero(N):
    """The variance is of what is left when the mean, 300 times larger, has gone."""
    call = head_call(N, width=270, **SMALL)
    call.args["weights"][1] = call.args["weights"][1] + 300
    assert excess(call.functional(), call) <= 1


@pytest.mark.parametrize(
    "kind", [(F32, *FORMS[2]), (BF16, *FORMS[1]), (I8, *FORMS[0]), (BF16, *FORMS[3])], ids=str
)
def test_a_patch_has_the_same_bits_in_any_company(kind):
    """Alone, of 20, in another order, and one condition at a time."""
    dtype, *form = kind
    call = head_call(20, *form, 40, inner=37, dtype=dtype, ways=2, **SMALL)
    together = call.functional(batch_invariant=True)
    assert excess(together, call) <= 1
    assert same_bits(call.rows([19]).functional(batch_invariant=True), together[:, [19]])
    order = torch.arange(20).flip(0)[:17]
    assert same_bits(call.rows(order).functional(batch_invariant=True), together[:, order])
    assert same_bits(call.way(1).functional(batch_invariant=True), together[1:])


@pytest.mark.parametrize("N", [3, 20])
def test_a_nan_patch_spoils_no_other(N):
    call = head_call(N, ways=2, dtype=BF16, **SMALL)
    clean = call.functional()
    call.args["x"][1] = math.nan
    spoilt = call.functional()
    keep = [n for n in range(N) if n != 1]
    assert spoilt[:, 1].isnan().all() and same_bits(spoilt[:, keep], clean[:, keep])


class Launches:
    """Stands for a kernel and counts."""

    def __init__(self, kernel, grids: list) -> None:
        self.kernel, self.grids = kernel, grids

    def __getitem__(self, grid):
        self.grids.append(grid)
        return self.kernel[grid]


@pytest.mark.parametrize("case", [(3, 5, 2, 6), (3, 6, 2, 9), (1, 1, 3, 8), (1, 16, 1, 4)])
def test_launches(monkeypatch, case):
    """Two a block up to 16 rows, three with more; two or three for input and final layer."""
    ways, N, depth, expected = case
    grids = []
    for name in ("few_rows", "many_rows", "norm_rows"):
        monkeypatch.setattr(host, name, Launches(getattr(host, name), grids))
    call = head_call(N, ways=ways, depth=depth, width=8, d=2, out=2)
    call.functional()
    assert len(grids) == expected


def programs(tile, rows: int, outs: int) -> int:
    return math.prod(-(-n // size) for n, size in ((rows, tile.rows), (outs, tile.outs)))


@pytest.mark.parametrize("dtype", [F32, BF16, I8], ids=str)
def test_tiles(dtype):
    """Enough programs wherever the smallest tile gives them; invariant calls have one tile."""
    tiles = {host.many_tile(rows, 1024, dtype, False, True) for rows in (1, 40, 5000)}
    assert len(tiles) == 1
    for outs in (512, 1024, 1536, 4608):
        sizes = []
        for rows in (17, 64, 200, 1024, 8192):
            tile = host.many_tile(rows, outs, dtype, False, False)
            assert programs(tile, rows, outs) >= 96 or tile.rows == 32
            sizes.append(tile.rows * tile.outs)
        assert sizes == sorted(sizes)
    assert programs(host.few_tile(dtype, True, hip=False), 16, 1024) == 128
