"""Tensors that share memory: an in-place op refuses them where an element that it writes is an
element of another argument, and nowhere else."""

from __future__ import annotations

import random

import pytest
import torch

import ardiff_kernels
from ardiff_kernels import ops, testing
from ardiff_kernels.ops._shared.arguments import _share_memory
from tests.kernels.head_loop.calls import loop_call

ROWS, WIDTH = 3, 4
REST = list(testing.uld_call(ROWS, WIDTH).args.values())[4:]


def elements(t: torch.Tensor) -> set[int]:
    places = torch.zeros((), dtype=torch.int64)
    for n, stride in zip(t.shape, t.stride(), strict=True):
        places = places.unsqueeze(-1) + torch.arange(n) * stride
    return {t.storage_offset() + int(place) for place in places.flatten()}


def layouts(count: int):
    """Pairs of views `[ROWS, WIDTH]` of one buffer, as far apart as they may meet."""
    generator = random.Random(20240607)
    for _ in range(count):
        buffer = torch.zeros(100)
        strides = [generator.choice((WIDTH, WIDTH + 1, 2 * WIDTH, 3 * WIDTH)) for _ in range(2)]
        begins = [generator.randrange(40) for _ in range(2)]
        yield tuple(
            buffer.as_strided((ROWS, WIDTH), (stride, 1), begin)
            for stride, begin in zip(strides, begins, strict=True)
        )


def refuses(written: torch.Tensor, other: torch.Tensor) -> bool:
    free = torch.zeros(ROWS, WIDTH)
    try:
        ops.uld_step_(written, free, other, free.clone(), *REST)
    except RuntimeError as error:
        assert "written in place but shares its memory with model_out" in str(error)
        return True
    return False


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_every_layout(backend):
    """Against the sets of elements; a pair that coincides is allowed, since each element is read
    before it is written."""
    if backend not in testing.usable_backends("uld_step"):
        pytest.skip(f"{backend} is not built")
    met = 0
    with ardiff_kernels.backend(backend):
        for a, b in layouts(300):
            meet = bool(elements(a) & elements(b))
            assert _share_memory(a, b) == _share_memory(b, a) == meet
            same = a.stride() == b.stride() and a.storage_offset() == b.storage_offset()
            assert refuses(a, b) == (meet and not same)
            met += meet
    assert 50 < met < 250


def test_other_arguments():
    """One interval against rows, an empty tensor, a row that is shared, transposed elements."""
    buffer = torch.zeros(100)
    rows = buffer.as_strided((3, 4), (10, 1), 0)
    for begin, size, meet in ((4, 6, False), (4, 7, True), (14, 6, False), (24, 9, False)):
        assert _share_memory(rows, buffer[begin : begin + size]) == meet
    assert not _share_memory(rows, buffer[:0])
    assert _share_memory(rows, buffer[20:24].expand(5, 4))
    assert not _share_memory(rows, buffer[4:8].expand(5, 4))
    assert _share_memory(rows, buffer[:80].view(8, 10).t())


def test_coinciding_arguments_have_the_right_values(implementation):
    call = testing.uld_call(ROWS, WIDTH)
    z = call.args["z"].clone()
    call.args["model_out"] = call.args["z"]
    expected = call.functional()[0]
    ops.uld_step_(z, call.args["v"].clone(), z, call.args["anchor"].clone(), *REST)
    assert torch.equal(z, expected)


def test_a_loop_does_not_write_its_own_head():
    """`head_loop_` reads the head at every step, after it has written the state."""
    call = loop_call(3)
    weight = call.args["weights"][0]
    shared = weight.flatten()[: call.args["x"].numel()].view_as(call.args["x"])
    try:
        ops.head_loop_(shared, *list(call.args.values())[1:], **call.options)
    except RuntimeError as error:
        assert str(error).startswith("head_loop_: x is written in place but shares its memory with")
        assert "weights[0]" in str(error)
    else:
        raise AssertionError("not refused")
