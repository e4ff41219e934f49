"""Argument checks of `brownian_increment`; ``csrc/torch/brownian_increment.h`` repeats them."""

from __future__ import annotations

import torch
from torch import Tensor

from .._shared.arguments import QUADS, check_placement, check_vector, dtype_name, got


def check_brownian_increment(
    key: Tensor, stream: Tensor, start: Tensor, end: Tensor, d: int
) -> None:
    op = "brownian_increment"
    check_vector(op, "key", key, torch.int64, 1)
    if not (stream.dim() == 1 and stream.dtype == torch.int64 and stream.is_contiguous()):
        raise RuntimeError(f"{op}: stream must be a contiguous int64 [B], {got(stream)}")
    times = {"start": start, "end": end}
    for name, time in times.items():
        check_vector(op, name, time, torch.float32, stream.shape[0], shared=True)
    if not 0 <= d <= 4 * QUADS:
        raise RuntimeError(f"{op}: d must lie in [0, {4 * QUADS}], got {d}")
    check_placement(op, {"key": key, "stream": stream, **times}, ())


def check_brownian_increment_(
    out: Tensor, key: Tensor, stream: Tensor, start: Tensor, end: Tensor
) -> None:
    op = "brownian_increment_"
    if out.dim() != 2:
        raise RuntimeError(f"{op}: out must be [B, d], got {out.dim()} dimensions")
    if out.dtype != torch.float32:
        raise RuntimeError(f"{op}: out must be float32, got {dtype_name(out.dtype)}")
    check_vector(op, "key", key, torch.int64, 1)
    check_vector(op, "stream", stream, torch.int64, out.shape[0])
    times = {"start": start, "end": end}
    for name, time in times.items():
        check_vector(op, name, time, torch.float32, out.shape[0], shared=True)
    check_placement(op, {"out": out, "key": key, "stream": stream, **times}, ("out",))
