"""How an address of noise is laid out is known in one place in each package: streams by
`ardiff.noise`, counter words by `ardiff_kernels.ops._shared.address` and the Triton functions that
follow it. Elsewhere noise has a named purpose and no arithmetic of its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT

KNOW = {
    "python/ardiff/noise.py",
    "ardiff_kernels/ops/_shared/address.py",
}
# Where a number by chance is that of a layout: the bits of a float8, moved to those of a float32.
OTHERWISE = {("ardiff_kernels/ops/kv_attention/triton_tile.py", "magnitude << 20")}
PATCHES = {"20", "2 ** 20", "1 << 20", "1048576"}
COUNTER_SECOND = {"philox_normal", "normals", "normal_pairs", "philox_words", "philox4"}
SHIFTS, PRODUCTS = (ast.LShift, ast.RShift), (ast.Mult, ast.FloorDiv, ast.Mod)


def _number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int)


def _stream_arithmetic(node: ast.AST) -> bool:
    """x << 20 and x * 2**20 of something that is not a number, as a size in bytes is."""
    if not isinstance(node, ast.BinOp) or _number(node.left) and _number(node.right):
        return False
    left, right = ast.unparse(node.left), ast.unparse(node.right)
    if isinstance(node.op, SHIFTS):
        return right == "20" and not _number(node.left)
    others = PATCHES - {"20"}
    return isinstance(node.op, PRODUCTS) and (left in others or right in others)


def _counter_arithmetic(node: ast.AST) -> bool:
    """4 * draw and draw << 2."""
    if not isinstance(node, ast.BinOp):
        return False
    for one, other in ((node.left, node.right), (node.right, node.left)):
        four = isinstance(node.op, ast.Mult) and ast.unparse(one) == "4"
        four |= isinstance(node.op, ast.LShift) and one is node.right and ast.unparse(one) == "2"
        if four and "draw" in ast.unparse(other).lower():
            return True
    return False


def _bare_purpose(node: ast.AST) -> bool:
    """A number where a purpose or a counter word is given."""
    if not isinstance(node, ast.Call):
        return False
    name = ast.unparse(node.func).rpartition(".")[2]
    given = [k.value for k in node.keywords if k.arg in ("purpose", "counter")]
    if name == "counter_word" or name in COUNTER_SECOND:
        given += node.args[1:2]
    own = [value for value in given if not ast.unparse(value).startswith("counter_word(")]
    return any(_number(part) for value in own for part in ast.walk(value))


def offences(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if _stream_arithmetic(node) or _counter_arithmetic(node) or _bare_purpose(node):
            yield ast.unparse(node)


def files() -> list[Path]:
    paths = [*(ROOT / "python/ardiff").rglob("*.py"), *(ROOT / "ardiff_kernels").rglob("*.py")]
    return [path for path in paths if str(path.relative_to(ROOT)) not in KNOW]


def test_no_address_is_made_elsewhere():
    found = {
        (str(path.relative_to(ROOT)), offence)
        for path in files()
        for offence in offences(path.read_text())
    }
    assert found >= OTHERWISE
    assert not found - OTHERWISE, "use ardiff.noise.stream_of, or counter_word and a Purpose"


def test_those_that_know_are_found():
    """The control: the rules see what they forbid where it is allowed."""
    assert all((ROOT / name).is_file() for name in KNOW)
    assert list(offences("stream = (sample_id << 20) + patch"))


PLANTED = (
    "stream = ids * 2**20 + patch",
    "stream = ids * (1 << 20)",
    "sample = stream >> 20",
    "sample = stream // 1048576",
    "patch = stream % 2**20",
    "c1 = 4 * draw + 1",
    "c1 = draw * 4",
    "c1 = (draw.to(tl.uint32) << 2) + 2",
    "n = ops.philox_normal(key, 1, stream, d)",
    "n = ops.philox_normal(key, row + 3, stream, d)",
    "n = normals(key, counter=3, stream=stream, n=d)",
    "w = counter_word(draw, 2)",
    "w = word(draw, purpose=2)",
)


@pytest.mark.parametrize("text", PLANTED)
def test_planted_arithmetic_is_found(text):
    assert list(offences(text))


@pytest.mark.parametrize(
    "text",
    [
        "BUDGET = 64 << 20",
        "mib = count / 2**20",
        "n = ops.philox_normal(key, counter_word(0, Purpose.INITIAL_STATE), stream, d)",
        "w = counter_word(row + 1, Purpose.STEP_NOISE)",
        "x = 4 * width",
    ],
)
def test_other_numbers_are_left_alone(text):
    assert not list(offences(text))
