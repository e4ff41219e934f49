"""`packed_linear`, a linear layer of packed weights, against `torch.nn.Linear` in the same dtype.

A case is `packed_linear/<K>x<O>/N=<rows>/<dtype>` with the dtype of the weights; x is float32 by
float32 weights and bfloat16 by others. Rivals are those of `_rivals.py`. All of them multiply by
one matrix again and again, which may stay in a cache; `share_of_read_bandwidth`, at one row, is
over matrices that together are larger than any.

    python -m ardiff bench linear --case packed_linear/4096x4096/N=1/bfloat16
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ardiff.heads.packing import WEIGHTS
from ardiff_kernels import PackedWeight, ops, pack_linear

from . import _harness, _rivals
from ._harness import OURS, Row, Settings
from ._rivals import Rival

SUITE = "linear"
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
SIZES = ("4096x4096", "1024x1024")  # the second is MAR-B's head
CASES = tuple(
    f"packed_linear/{size}/N={n}/{dtype}" for size in SIZES for n in ROWS[::2] for dtype in WEIGHTS
)
_CASE = re.compile(r"packed_linear/(?P<K>\d+)x(?P<O>\d+)/N=(?P<N>\d+)/(?P<dtype>\w+)")
# Relative RMS errors; of bfloat16 weights twice that of PyTorch.
ERRORS = {"float32": 1e-5, "int8": 0.03}
_READ, _BEYOND_CACHES = "read", 2**28


class Inputs(NamedTuple):
    """A float32 layer `[K]` -> `[O]`, and x `[N, K]` in the dtype in which ours takes it."""

    layer: nn.Linear
    x: Tensor
    weights: str

    def ours(self, packed: PackedWeight) -> Tensor:
        return ops.packed_linear(
            self.x, packed.weight, packed.rows, scale=packed.scale, bias=self.layer.bias
        )

    def packed(self) -> PackedWeight:
        return pack_linear(self.layer.weight, WEIGHTS[self.weights])

    def plain(self, rival: Rival) -> Callable[[], Tensor]:
        """The layer by a rival, x cast beforehand."""
        return partial(rival.call, self.x.to(rival.dtype))

    def in_dtype(self, dtype: torch.dtype) -> Tensor:
        return copy.deepcopy(self.layer).to(dtype)(self.x.to(dtype))


def inputs(case: str, settings: Settings) -> Inputs:
    """Random tensors of a case.

    Raises:
        ValueError: a name of another form.
    """
    found = _CASE.fullmatch(case)
    sizes = [int(found[name]) for name in "KON"] if found else [0]
    if min(sizes) < 1 or found["dtype"] not in WEIGHTS:
        raise ValueError(
            f"case {case!r}: expected packed_linear/<K>x<O>/N=<rows>/<dtype>, such as {CASES[0]}, "
            f"with a dtype of {', '.join(WEIGHTS)}"
        )
    columns, rows, n = sizes
    generator = torch.Generator().manual_seed(settings.seed)
    layer = nn.Linear(columns, rows).requires_grad_(False)
    layer.weight.copy_(torch.randn(rows, columns, generator=generator) * columns**-0.5)
    layer.bias.copy_(torch.randn(rows, generator=generator))
    dtype = torch.float32 if found["dtype"] == "float32" else torch.bfloat16
    x = torch.randn(n, columns, generator=generator).to(settings.device, dtype)
    return Inputs(layer.to(settings.device), x, found["dtype"])


def correctness(case: str, tensors: Inputs, rivals: dict[str, Rival]) -> Iterator[Row]:
    """Ours and the rivals against float64."""
    exact = tensors.in_dtype(torch.float64)
    found = _harness.relative_error(tensors.ours(tensors.packed()), exact)
    allowed = ERRORS.get(tensors.weights)
    if allowed is None:
        allowed = 2 * _harness.relative_error(tensors.in_dtype(torch.bfloat16), exact)
    yield _harness.error_row(SUITE, case, OURS, found, torch.zeros(()), allowed)
    yield Row(SUITE, case, OURS, "error", float(found))
    plain = {name: tensors.plain(rival) for name, rival in rivals.items()}
    yield from _rivals.correctness(SUITE, case, plain, exact)


def run(case: str, settings: Settings) -> Iterator[Row]:
    """Correctness, then times and speedups, on a CPU the gain of each number of threads, and at one
    row the share of the read bandwidth."""
    with torch.inference_mode():
        tensors = inputs(case, settings)
        rivals = _rivals.made(tensors.layer, tensors.weights, settings)
        yield from correctness(case, tensors, rivals)
        ours = partial(tensors.ours, tensors.packed())
        plain = {name: tensors.plain(rival) for name, rival in rivals.items()}
        seconds = _harness.interleave({OURS: ours, **plain}, settings)
        for name, values in seconds.items():
            micro = [value * 1e6 for value in values]
            yield _harness.spread_row(SUITE, case, name, "time", micro, "us")
        for name in rivals:
            yield _harness.speedup_row(SUITE, case, name, seconds[name], seconds[OURS])
        if settings.device == "cpu":
            yield from _scaling(case, ours, settings)
        if len(tensors.x) == 1:
            yield from _bandwidth(case, tensors, settings)


def _scaling(case: str, ours: Callable[[], Tensor], settings: Settings) -> Iterator[Row]:
    """Times by threads, 1, 2, 4... and all, and how much faster than one they are."""
    most = torch.get_num_threads()
    counts = sorted({most, *(2**i for i in range(most.bit_length()))})

    def on(threads: int) -> None:
        torch.set_num_threads(threads)
        ours()

    try:
        seconds = _harness.interleave({n: partial(on, n) for n in counts}, settings)
    finally:
        torch.set_num_threads(most)
    for n, values in seconds.items():
        micro = [value * 1e6 for value in values]
        yield _harness.spread_row(SUITE, case, OURS, f"time-threads={n}", micro, "us")
        gains = [one / value for one, value in zip(seconds[1], values, strict=True)]
        yield _harness.spread_row(SUITE, case, OURS, f"scaling-threads={n}", gains, "x")


def _bandwidth(case: str, tensors: Inputs, settings: Settings) -> Iterator[Row]:
    """Weights that a call reads from memory, over its time, and of a plain read."""
    packed = tensors.packed()
    size = packed.weight.numel() * packed.weight.element_size()
    copies = max(2, -(-_BEYOND_CACHES // size))
    matrices = cycle([packed._replace(weight=packed.weight.clone()) for _ in range(copies)])
    buffer = torch.ones(_BEYOND_CACHES // 4, device=settings.device)
    competitors = {OURS: lambda: tensors.ours(next(matrices)), _READ: buffer.sum}
    seconds = _harness.interleave(competitors, settings)
    rates = {OURS: size, _READ: 4 * buffer.numel()}
    rates = {name: [n / s / 1e9 for s in seconds[name]] for name, n in rates.items()}
    for name, values in rates.items():
        yield _harness.spread_row(SUITE, case, name, "bandwidth", values, "GB/s")
    share = [a / b for a, b in zip(rates[OURS], rates[_READ], strict=True)]
    yield _harness.spread_row(SUITE, case, OURS, "share_of_read_bandwidth", share, "1")
