"""Results that do not depend on the batch: matrix products of one shape, vector code throughout.

Two things make a row of a network's output depend on the rows beside it. A matrix product picks its
kernel, hence its order of summation, by the number of rows. And on a CPU the last elements of a
tensor, those that fill no vector, go through scalar code, which rounds SiLU, GELU and the like
otherwise than the vector code. Within :func:`batch_invariant` products are computed `TILE` rows a
call, the last call filled up with zeros, and such functions on flat tensors filled up to whole
vectors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

TILE = 16
_VECTOR = 64  # elements; a multiple of every vectorised loop's step
_SERIAL = 16384  # elements; below the size at which torch splits a loop among threads

_ELEMENTWISE = {
    F.silu, F.gelu, F.sigmoid, F.tanh, F.softplus, F.elu, F.mish, F.hardswish,
    torch.sigmoid, torch.tanh, torch.exp, torch.expm1, torch.log, torch.log1p, torch.sin,
    torch.cos, torch.erf, torch.rsqrt, torch.addcmul,
    Tensor.sigmoid, Tensor.tanh, Tensor.exp, Tensor.expm1, Tensor.log, Tensor.log1p, Tensor.sin,
    Tensor.cos, Tensor.erf, Tensor.rsqrt, Tensor.addcmul,
}  # fmt: skip
_PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm}


@functools.lru_cache(maxsize=256)
def _tile(rows: int, inner: int, outer: int, dtype: torch.dtype, device: str) -> int:
    """`rows`, or 1 where this machine's product of `rows` rows rounds them differently."""
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(inner, generator=generator).to(device, dtype)
    weight = torch.randn(outer, inner, generator=generator).to(device, dtype)
    found = F.linear(row.expand(rows, inner).contiguous(), weight)
    return rows if bool((found == found[0]).all()) else 1


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` whose calls have one shape whatever the number of rows of x `[..., inner]`."""
    outer, inner = weight.shape
    flat = x.reshape(-1, inner)
    rows = flat.shape[0]
    tile = _tile(TILE, inner, outer, x.dtype, str(x.device))
    parts = []
    for first in range(0, rows, tile):
        # A fresh tensor is aligned; products may round by alignment too.
        part = flat.new_zeros(tile, inner)
        part[: min(tile, rows - first)] = flat[first : first + tile]
        parts.append(F.linear(part, weight, bias))
    if not parts:
        return x.new_empty(*x.shape[:-1], outer)
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out[:rows].view(*x.shape[:-1], outer)


def _elementwise(function: Callable, tensors: list[Tensor], args: tuple, options: dict) -> Tensor:
    if len(tensors) > 1:
        tensors = torch.broadcast_tensors(*tensors)
    shape, count = tensors[0].shape, tensors[0].numel()
    flat = [t.reshape(-1) for t in tensors]
    if count % _VECTOR:
        flat = [F.pad(t, (0, -count % _VECTOR)) for t in flat]
    if count <= _SERIAL:
        return function(*flat, *args, **options)[:count].view(shape)
    pieces = zip(*(t.split(_SERIAL) for t in flat), strict=True)
    return torch.cat([function(*each, *args, **options) for each in pieces])[:count].view(shape)


class batch_invariant(TorchFunctionMode):  # noqa: N801  (used like a function)
    """Context in which each row of a network is computed as it would be alone, to the bit.

    It covers `F.linear`, products of activations `[..., inner]` with a matrix, and elementwise
    functions; norms and softmax over the last dimension are row by row already. Attention and
    convolutions of PyTorch are not covered: `kv_attention` needs no help, and
    `CausalEncoder.prefill` runs row by row here. Products with a batch of matrices, and elementwise
    functions told to write in place, raise.
    """

    def __torch_function__(self, function, types, args: tuple = (), kwargs: Any = None):
        kwargs = kwargs or {}
        if function is F.linear:
            return linear(*args, **kwargs)
        if function in _PRODUCTS:
            x, matrix = args
            if matrix.dim() != 2 or x.dim() < 2:
                raise NotImplementedError(
                    "batch_invariant: expected a product [..., n] @ [n, m], got "
                    f"{list(x.shape)} @ {list(matrix.shape)}"
                )
            return linear(x, matrix.t().contiguous())
        if function in _ELEMENTWISE and args[0].device.type == "cpu":
            if kwargs.get("out") is not None or kwargs.pop("inplace", False):
                raise NotImplementedError("batch_invariant: expected no out= and no inplace=True")
            tensors = [a for a in args if isinstance(a, Tensor)]
            return _elementwise(function, tensors, args[len(tensors) :], kwargs)
        return function(*args, **kwargs)


def is_batch_invariant() -> bool:
    """Whether a :func:`batch_invariant` context is active."""
    modes = torch.overrides._get_current_function_mode_stack()
    return any(isinstance(mode, batch_invariant) for mode in modes)
