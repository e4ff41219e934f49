"""Argument checks of `head_loop`; ``csrc/torch/head_loop.h`` repeats them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._shared.arguments import (
    QUADS,
    check_apart,
    check_matrix,
    check_placement,
    check_table,
    check_vector,
)
from ..head_step.checks import check_head


def ways_of(op: str, guidance: Tensor | None, guidance2: Tensor | None) -> int:
    """How many conditions a patch has."""
    if guidance2 is not None and guidance is None:
        raise RuntimeError(f"{op}: guidance2 goes only beside guidance")
    return 1 + (guidance is not None) + (guidance2 is not None)


def check_head_loop(
    name: str,
    written: Sequence[str],
    x: Tensor,
    memory: Tensor,
    modulation: Tensor,
    set: Tensor,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor],
    coef: Tensor,
    draw: Tensor,
    key: Tensor,
    stream: Tensor,
    *,
    norm: str,
    mlp: str,
    depth: int,
    eps: float,
    v: Tensor | None = None,
    op: Tensor | None = None,
    guidance: Tensor | None = None,
    guidance2: Tensor | None = None,
    noise_scale: Tensor | None = None,
    batch_invariant: bool = False,
) -> None:
    ways = ways_of(name, guidance, guidance2)
    options = {"norm": norm, "mlp": mlp, "depth": depth, "eps": eps, "ways": ways}
    check_head(name, x, modulation, 0, weights, scales, **options)
    rows, d = x.shape
    if d > 2 * QUADS:
        raise RuntimeError(f"{name}: x must have at most {2 * QUADS} elements per row, got {d}")
    out = weights[-2].shape[0]
    if out != d:
        raise RuntimeError(
            f"{name}: the final layer must have an output for each of the {d} elements of a row of "
            f"x, got {out}"
        )
    check_matrix(name, "memory", memory, torch.float32, (rows, d))
    if (v is None) != (op is None):
        raise RuntimeError(f"{name}: v and op go together: pass both or neither")
    check_matrix(name, "v", v, torch.float32, (rows, d))
    check_table(name, coef)
    steps = coef.shape[0]
    for vector, t in (("set", set), ("op", op)):
        check_vector(name, vector, t, torch.int32, steps)
    check_vector(name, "draw", draw, torch.int32, rows, shared=True)
    check_vector(name, "key", key, torch.int64, 1)
    check_vector(name, "stream", stream, torch.int64, rows)
    factors = {"guidance": guidance, "guidance2": guidance2, "noise_scale": noise_scale}
    for factor, t in factors.items():
        check_vector(name, factor, t, torch.float32, rows, shared=True)
    tensors = {"x": x, "memory": memory, "v": v, "set": set, "op": op, "coef": coef}
    tensors |= {"draw": draw, "key": key, "stream": stream, **factors}
    check_placement(name, tensors, written)
    head = {"modulation": modulation}
    head |= {f"weights[{i}]": t for i, t in enumerate(weights)}
    head |= {f"scales[{i}]": t for i, t in enumerate(scales)}
    changed = {n: tensors[n] for n in written if tensors[n] is not None}
    check_apart(name, changed, head, rowwise=False)
