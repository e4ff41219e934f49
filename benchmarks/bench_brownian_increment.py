"""`brownian_increment`, a step's noise from a Brownian path, against `torch.randn`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from ardiff_kernels.ops import brownian_increment, brownian_increment_

from . import _harness, _ops
from ._harness import Row, Settings

SUITE = _ops.SUITE
CASES = ("brownian_increment/1024/float32", "brownian_increment/4194304/float32")


def run(case: str, settings: Settings) -> Iterator[Row]:
    """Correctness, then the in-place and the functional form against eager and compile."""
    shape = _ops.parse(case)
    if shape.dtype != torch.float32:
        raise ValueError(f"case {case!r}: brownian_increment makes float32 normals only")
    address = _ops.addresses(shape, settings)
    key, stream = address["key"], address["stream"]
    few = stream[: _ops.head(shape)]
    times = torch.tensor([[0.3], [0.7]], device=settings.device).unbind(0)
    yield from _ops.against_reference(
        shape, lambda: (brownian_increment(key, few, *times, shape.width),), _ops.tolerance(0.0)
    )
    out = torch.empty(shape.batch, shape.width, device=settings.device)
    ours: dict[str, Callable[[], object]] = {
        _harness.OURS: lambda: brownian_increment_(out, key, stream, *times),
        "ardiff-functional": lambda: brownian_increment(key, stream, *times, shape.width),
    }
    size = (shape.batch, shape.width)
    yield from _ops.compare(
        shape, ours, lambda: torch.randn(size, device=settings.device), settings
    )
