"""What the benchmarks of the ops share: case names, inputs, and the comparison itself."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import ardiff_kernels
from ardiff.noise import make_stream
from ardiff_kernels.ops._shared.tables import TABLE_WIDTH

from . import _harness
from ._harness import Row, Settings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SUITE = "ops"
_CHECKED_ROWS = 65536
_CASE = re.compile(r"(?P<op>\w+)(-d(?P<width>\d+))?/(?P<elements>\d+)/(?P<dtype>\w+)")


@dataclass(frozen=True)
class Shape:
    """A case `<op>/<elements>/<dtype>`, or `<op>-d<width>/...` for samples of another width.

    The width of a sample is 1024 unless stated, or all elements where 1024 does not divide them.
    """

    case: str
    op: str
    batch: int
    width: int
    dtype: torch.dtype

    @property
    def elements(self) -> int:
        return self.batch * self.width


def parse(case: str) -> Shape:
    """Read a case name.

    Raises:
        ValueError: a name of another form.
    """
    found = _CASE.fullmatch(case)
    if found is None or found["dtype"] not in DTYPES:
        raise ValueError(
            f"case {case!r}: expected <op>/<elements>/<dtype> or <op>-d<width>/<elements>/<dtype>, "
            f"such as uld_step/1024/float32, with dtype one of {', '.join(DTYPES)}"
        )
    elements = int(found["elements"])
    width = int(found["width"] or (1024 if elements % 1024 == 0 else elements))
    if elements < 1 or width < 1 or elements % width:
        raise ValueError(f"case {case!r}: the width must divide the elements, got {width}")
    return Shape(case, found["op"], elements // width, width, DTYPES[found["dtype"]])


def coefficients(columns: tuple[str, ...], values: dict[str, float], device: str) -> Tensor:
    """A float32 `[1, TABLE_WIDTH]` table of one row; columns that are not named hold zero."""
    row = [values.get(name, 0.0) for name in columns]
    return torch.tensor([row + [0.0] * (TABLE_WIDTH - len(row))], device=device)


def addresses(shape: Shape, settings: Settings) -> dict[str, Tensor]:
    """row, draw, key and stream of a batch that shares its row."""
    device = settings.device
    return {
        "row": torch.zeros(1, dtype=torch.int32, device=device),
        "draw": torch.full((1,), 3, dtype=torch.int32, device=device),
        "key": torch.tensor([settings.seed], device=device),
        "stream": make_stream(None, shape.batch, 0, device),
    }


def head(shape: Shape) -> int:
    """How many samples the correctness rows look at (samples are independent)."""
    return max(1, min(shape.batch, _CHECKED_ROWS // shape.width))


def against_reference(
    shape: Shape, run: Callable[[], tuple[Tensor, ...]], tolerance: float, suite: str = SUITE
) -> Iterator[Row]:
    """A correctness row: `run` by the chosen backend against the reference backend."""
    found = run()
    with ardiff_kernels.backend("reference"):
        expected = run()
    flat = [torch.cat([t.float().flatten() for t in tensors]) for tensors in (found, expected)]
    scale = flat[1].abs().clamp(min=1.0)
    yield _harness.error_row(suite, shape.case, "reference", *flat, tolerance * scale)


def compare(
    shape: Shape,
    ours: dict[str, Callable[[], object]],
    eager: Callable[[], object],
    settings: Settings,
    costs: tuple[str, ...] = (),
) -> Iterator[Row]:
    """Time the op's forms against the eager expression and the same under `torch.compile`.

    `compile` draws by eager's vectorised generator (`fallback_random`), its fastest form on a CPU:
    Inductor's own generator, which is the default, makes one number at a time there and was slower
    than eager (`uld_step`, 2^22 elements: eager 169 ns per element, compile 299, so 56).

    Speedups are those of the first form, in place; the other forms are rows of time, and for those
    named in `costs` also of `cost`: the first form's time over theirs.
    """
    compiled = torch.compile(
        eager, fullgraph=True, dynamic=False, options={"fallback_random": True}
    )
    rivals = settings.pick({"eager": eager, "compile": compiled})
    with torch.inference_mode():
        seconds = _harness.interleave({**ours, **rivals}, settings)
    yield from _harness.comparison(SUITE, shape.case, seconds, shape.elements, tuple(rivals))
    for name in costs:
        ratios = [a / b for a, b in zip(seconds[_harness.OURS], seconds[name], strict=True)]
        yield _harness.spread_row(SUITE, shape.case, name, "cost", ratios, "x")
    torch.compiler.reset()


def tolerance(noise: float) -> float:
    """Error allowed relative to max(1, |value|): float32 rounding, and 2e-6 of the normals."""
    return 4 * 2.0**-23 + 2e-6 * max(1.0, math.fabs(noise))
