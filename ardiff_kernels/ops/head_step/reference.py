"""One evaluation of a diffusion head in plain PyTorch: the definition of `head_step`.

Computes in float64 when x is float64 (the oracle of the tests), else in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .._shared.rows import compute_dtype
from ..packed_linear.packing import plain_matrix


def head_step(
    x: Tensor,
    modulation: Tensor,
    set: int,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor],
    *,
    norm: str,
    mlp: str,
    depth: int,
    eps: float,
    ways: int = 1,
    batch_invariant: bool = False,
) -> Tensor:
    dtype = compute_dtype(x)
    chosen = modulation[set].to(dtype)
    chosen = chosen.reshape(ways, chosen.shape[0] // ways, chosen.shape[1])
    layers = [
        (_matrix(weights, scales, i, dtype), weights[2 * i + 1].to(dtype))
        for i in range(2 * depth + 2)
    ]
    if not batch_invariant:
        return _evaluate(x.to(dtype), chosen, layers, norm, mlp, depth, eps).contiguous()
    out = x.new_empty((ways, len(x), len(layers[-1][0])), dtype=dtype)
    for way in range(ways):
        for n in range(len(x)):
            row = n if chosen.shape[1] == len(x) else 0
            one = chosen[way : way + 1, row : row + 1].clone()
            alone = x[n : n + 1].to(dtype, copy=True)
            out[way, n] = _evaluate(alone, one, layers, norm, mlp, depth, eps)[0, 0]
    return out


def _matrix(
    weights: Sequence[Tensor], scales: Sequence[Tensor], i: int, dtype: torch.dtype
) -> Tensor:
    matrix = plain_matrix(weights[2 * i])
    if matrix.dtype != torch.int8:
        return matrix.to(dtype)
    return matrix.to(dtype) * scales[i].to(dtype).unsqueeze(-1)


def _linear(h: Tensor, layer: tuple[Tensor, Tensor]) -> Tensor:
    matrix, bias = layer
    return F.linear(h, matrix, bias if len(bias) else None)


def _normed(h: Tensor, norm: str, eps: float) -> Tensor:
    if norm == "layer":
        h = h - h.mean(-1, keepdim=True)
    return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)


def _evaluate(
    x: Tensor,
    modulation: Tensor,
    layers: Sequence[tuple[Tensor, Tensor]],
    norm: str,
    mlp: str,
    depth: int,
    eps: float,
) -> Tensor:
    """x `[N, d]`, modulation `[ways, N or 1, M]` -> `[ways, N, out]`."""
    h = _linear(x, layers[0])
    parts = modulation.split(len(layers[0][0]), -1)
    h = h.expand(len(modulation), *h.shape)
    for block in range(depth):
        shift, scale, gate = parts[3 * block : 3 * block + 3]
        inner = _linear(_normed(h, norm, eps) * scale + shift, layers[2 * block + 1])
        if mlp == "gated":
            gates, up = inner.chunk(2, -1)
            inner = F.silu(gates) * up
        else:
            inner = F.silu(inner)
        h = h + gate * _linear(inner, layers[2 * block + 2])
    return _linear(_normed(h, norm, eps) * parts[-1] + parts[-2], layers[-1])
