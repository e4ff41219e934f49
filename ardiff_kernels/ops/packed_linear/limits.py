"""From how many rows on PyTorch's own product is the faster one, by how the C++ library computes.

Measured by ``python -m ardiff bench linear`` on the CPUs named; where a way of computing or a dtype
is not listed, no number of rows was found at which PyTorch is faster.
"""

from __future__ import annotations

import torch

from ...dispatch import cpu

PYTORCH_FROM: dict[str, dict[torch.dtype, int]] = {
    # Not measured, since no machine with matrix tiles was at hand: up to here the weights' way from
    # memory bounds both, and PyTorch's product of many rows (oneDNN) is known to be good.
    "amx": {torch.bfloat16: 128},
}


def way() -> str:
    """How the C++ library computes: the instruction set, or the dot products where it has them."""
    dots = cpu.current_dots()
    return cpu.current_isa() if dots == "common" else dots


def pytorch_is_faster(dtype: torch.dtype, rows: int = 2**62) -> bool:
    """Whether PyTorch multiplies so many rows by weights of this dtype faster; by default, whether
    it does so at any number."""
    first = PYTORCH_FROM.get(way(), {}).get(dtype)
    return first is not None and rows >= first
