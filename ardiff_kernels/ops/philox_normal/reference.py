"""Addressed normals in plain PyTorch: the definition of `philox_normal`."""

from __future__ import annotations

import torch
from torch import Tensor

from .._shared.address import normals


def philox_normal(key: Tensor, counter: int, stream: Tensor, n: int) -> Tensor:
    word = torch.tensor([counter], dtype=torch.int64, device=stream.device)
    return normals(key, word, stream, n).float()


def philox_normal_(out: Tensor, key: Tensor, counter: int, stream: Tensor) -> None:
    out.copy_(philox_normal(key, counter, stream, out.shape[1]))
