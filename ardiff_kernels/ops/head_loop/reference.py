"""`head_loop` as its definition says: `head_step` and a step op, row after row.

It runs on whatever backend serves these; in float64 when x is float64 (the oracle of the tests).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...dispatch import backends
from .checks import ways_of


def part(op: str, x: Tensor) -> Callable:
    """The op that the reference calls: in float64 its reference."""
    if x.dtype == torch.float64:
        return backends.reference_function(op)
    return getattr(torch.ops.ardiff, op).default


def head_loop(
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
) -> tuple[Tensor, Tensor, Tensor]:
    head = {"norm": norm, "mlp": mlp, "depth": depth, "eps": eps}
    head |= {"batch_invariant": batch_invariant, "ways": ways_of("head_loop", guidance, guidance2)}
    options = {"guidance": guidance, "guidance2": guidance2, "noise_scale": noise_scale}
    x, memory = (t.clone(memory_format=torch.contiguous_format) for t in (x, memory))
    velocity = x.new_empty(0) if v is None else v.clone(memory_format=torch.contiguous_format)
    rows = torch.arange(len(coef), dtype=torch.int32, device=coef.device).split(1)
    kinds = [0] * len(coef) if op is None else op.tolist()
    for k, (index, kinetic) in enumerate(zip(set.tolist(), kinds, strict=True)):
        if not 0 <= index < len(modulation):
            continue
        outs = part("head_step", x)(x, modulation, index, weights, scales, **head)
        out, *uncond = outs.unbind(0)
        options |= dict(zip(("uncond_out", "uncond_out2"), uncond, strict=False))
        place = (coef, rows[k], draw + k, key, stream)
        if kinetic:
            step = part("uld_step", x)
            x, velocity, memory = step(x, velocity, out, memory, *place, **options)
        else:
            step = part("diffusion_step", x)
            x, memory, _ = step(x, out, memory, *place, **options)
    return x, memory, velocity


def head_loop_(x: Tensor, memory: Tensor, *args, v: Tensor | None = None, **options) -> None:
    found = head_loop(x, memory, *args, v=v, **options)
    for old, new in zip((x, memory, v), found, strict=True):
        if old is not None:
            old.copy_(new)
