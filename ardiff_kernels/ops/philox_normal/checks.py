"""Argument checks of `philox_normal`; ``csrc/torch/philox_normal.h`` repeats them."""

from __future__ import annotations

import torch
from torch import Tensor

from .._shared.arguments import QUADS, check_placement, check_vector, dtype_name, got


def _check_counter(op: str, counter: int) -> None:
    if not 0 <= counter < 2**32:
        raise RuntimeError(f"{op}: counter must lie in [0, 4294967295], got {counter}")


def check_philox_normal(key: Tensor, counter: int, stream: Tensor, n: int) -> None:
    op = "philox_normal"
    check_vector(op, "key", key, torch.int64, 1)
    if not (stream.dim() == 1 and stream.dtype == torch.int64 and stream.is_contiguous()):
        raise RuntimeError(f"{op}: stream must be a contiguous int64 [B], {got(stream)}")
    _check_counter(op, counter)
    if not 0 <= n <= 4 * QUADS:
        raise RuntimeError(f"{op}: n must lie in [0, {4 * QUADS}], got {n}")
    check_placement(op, {"key": key, "stream": stream}, ())


def check_philox_normal_(out: Tensor, key: Tensor, counter: int, stream: Tensor) -> None:
    op = "philox_normal_"
    if out.dim() != 2:
        raise RuntimeError(f"{op}: out must be [B, n], got {out.dim()} dimensions")
    if out.dtype != torch.float32:
        raise RuntimeError(f"{op}: out must be float32, got {dtype_name(out.dtype)}")
    check_vector(op, "key", key, torch.int64, 1)
    check_vector(op, "stream", stream, torch.int64, out.shape[0])
    _check_counter(op, counter)
    check_placement(op, {"out": out, "key": key, "stream": stream}, ("out",))
