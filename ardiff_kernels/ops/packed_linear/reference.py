"""A linear layer and what surrounds it in a block in plain PyTorch: the definition of
`packed_linear`.

Computes in float64 when x is float64 (the oracle of the tests), else in float32, row by row, since
PyTorch's products round by the number of rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .._shared.rows import compute_dtype
from .packing import unpack


def packed_linear(
    x: Tensor,
    weight: Tensor,
    rows: int,
    *,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    norm: Tensor | None = None,
    eps: float = 1e-6,
    activation: str = "none",
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    dtype = compute_dtype(x)
    matrix = unpack(weight, rows, x.shape[1]).to(dtype)
    if scale is not None:
        matrix = matrix * scale.to(dtype).unsqueeze(-1)
    vectors = [None if v is None else v.to(dtype) for v in (bias, norm)]
    out = [_row(one, matrix, *vectors, eps, activation) for one in x.to(dtype).split(1)]
    y = torch.cat(out) if out else x.new_empty((0, rows), dtype=dtype)
    if not out and activation == "swiglu":
        y = y[:, : rows // 2]
    if gate is not None:
        y = y * gate.to(dtype)
    if residual is not None:
        y = y + residual.to(dtype)
    return y.to(x.dtype)


def _row(
    x: Tensor,
    matrix: Tensor,
    bias: Tensor | None,
    norm: Tensor | None,
    eps: float,
    activation: str,
) -> Tensor:
    if norm is not None:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * norm
    y = F.linear(x.clone(), matrix, bias)  # a copy: the product may round by x's address
    if activation == "silu":
        return F.silu(y)
    if activation == "swiglu":
        first, second = y.chunk(2, -1)
        return F.silu(first) * second
    return y
