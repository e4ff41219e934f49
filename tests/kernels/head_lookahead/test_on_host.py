"""The CUDA kernel of `head_lookahead` run on the host, phase by phase over all blocks and threads,
in both orders (csrc/cuda/phases.cuh): the decisions of its parts, and to the bit whatever the
device and a patch's company. Shared and scratch memory begin as NaN."""

from __future__ import annotations

import re

import pytest
import torch

from ardiff_kernels.testing import same_bits
from tests.kernels.head_lookahead.calls import INVALID, TABLES, look_call
from tests.kernels.head_step.calls import BF16, FORMS, I8
from tests.kernels.head_step.on_host import DEVICES, usual_host


@pytest.fixture
def host():
    return usual_host()


def run(host, call):
    return host.ops.head_lookahead(*call.args.values(), **call.options)


CASES = {
    **{name: dict(N=3, table=name, ways=2) for name in ("ddpm", "multistep sde", "kinetic")},
    **{f"picard {name}": dict(N=2, table=name, tolerance=3e-2, rows=5, ways=3) for name in TABLES},
    "one patch": dict(N=1, rows=8),
    "odd": dict(N=2, d=5, width=37, inner=19, rows=3),
    "several chunks": dict(N=2, d=300, rows=3),
    "in tiles": dict(N=7, rows=3, ways=2, shared=True),
    "longer than the table": dict(N=2, rows=20),
    **{
        f"{norm} {mlp} {str(dtype)[6:]}": dict(N=2, norm=norm, mlp=mlp, dtype=dtype)
        for (norm, mlp), dtype in zip(FORMS, (BF16, I8, BF16, I8), strict=True)
    },
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_its_parts(host, name):
    """The same rounds and rows kept, which no case has near the border, and states within the
    rounding of products."""
    call = look_call(**CASES[name])
    found, expected = run(host, call), call.functional()
    for got, want in zip(found[3:], expected[3:], strict=True):
        assert got.dtype == torch.int32 and got.tolist() == want.tolist()
    for got, want in zip(found[:3], expected[:3], strict=True):
        assert got.shape == want.shape and got.is_contiguous()
        error = (got.double() - want.double()).norm()
        assert error <= 2e-5 * want.double().norm()
    for device in DEVICES[1:]:
        host.on(*device)
        assert all(map(same_bits, run(host, call), found))


@pytest.mark.parametrize("table", [name for name in TABLES if name != "two memories"])
def test_with_no_tolerance_it_is_head_loop(host, table):
    """The rows one after another by the same kernels, to the bit."""
    call = look_call(3, table=table, ways=2, tolerance=0.0)
    found = run(host, call)
    args = {n: t for n, t in call.args.items() if n not in ("plan", "rows")}
    options = {n: t for n, t in call.options.items() if n != "tolerance"}
    expected = host.ops.head_loop(*args.values(), **options)
    assert all(map(same_bits, found[:3], expected))


def test_lookahead_of_any_length_gives_the_same_bits_without_tolerance(host):
    """Rows that hold are those that a round of one row takes."""
    x = [run(host, look_call(3, table="two memories", rows=L, tolerance=0.0))[0] for L in (1, 4, 9)]
    assert same_bits(x[0], x[1]) and same_bits(x[0], x[2])


def test_a_patch_has_the_same_bits_in_any_company(host):
    call = look_call(4, ways=2, rows=3)
    together = run(host, call)
    a, o = call.args, call.options
    for n in range(4):
        rows = slice(n, n + 1)
        alone = call.changed(
            x=a["x"][rows],
            memory=a["memory"][rows],
            modulation=a["modulation"].view(3, 2, 4, -1)[:, :, n].contiguous(),
            stream=a["stream"][rows],
            guidance=o["guidance"][rows],
        )
        assert all(
            same_bits(got, every[rows])
            for got, every in zip(run(host, alone), together, strict=True)
            if got.numel()
        )


def test_a_set_that_there_is_not_gives_0(host):
    call = look_call(2, tolerance=1e-3)
    call.args["set"].fill_(7)
    found, expected = run(host, call), call.functional()
    assert found[3].tolist() == expected[3].tolist()
    torch.testing.assert_close(found[0], expected[0])


def test_no_patches(host):
    found = run(host, look_call(0))
    assert found[0].shape == (0, 6) and found[3].shape == (0,)


@pytest.mark.parametrize("name", INVALID)
def test_message(host, name):
    change, message = INVALID[name]
    call = change(look_call(4, ways=2))
    with pytest.raises(RuntimeError, match="^" + re.escape(f"head_lookahead: {message}")):
        run(host, call)
