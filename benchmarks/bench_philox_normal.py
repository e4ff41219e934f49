"""`philox_normal`, the addressed normals alone, against `torch.randn`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from ardiff_kernels.ops import philox_normal, philox_normal_

from . import _harness, _ops
from ._harness import Row, Settings

SUITE = _ops.SUITE
CASES = ("philox_normal/1024/float32", "philox_normal/4194304/float32")


def run(case: str, settings: Settings) -> Iterator[Row]:
    """Correctness, then the in-place and the functional form against eager and compile."""
    shape = _ops.parse(case)
    if shape.dtype != torch.float32:
        raise ValueError(f"case {case!r}: philox_normal makes float32 normals only")
    address = _ops.addresses(shape, settings)
    key, stream = address["key"], address["stream"]
    few = stream[: _ops.head(shape)]
    yield from _ops.against_reference(
        shape, lambda: (philox_normal(key, 1, few, shape.width),), _ops.tolerance(0.0)
    )
    out = torch.empty(shape.batch, shape.width, device=settings.device)
    ours: dict[str, Callable[[], object]] = {
        _harness.OURS: lambda: philox_normal_(out, key, 1, stream),
        "ardiff-functional": lambda: philox_normal(key, 1, stream, shape.width),
    }
    size = (shape.batch, shape.width)
    yield from _ops.compare(
        shape, ours, lambda: torch.randn(size, device=settings.device), settings
    )
