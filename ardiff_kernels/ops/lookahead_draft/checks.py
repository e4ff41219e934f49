"""Argument checks of `lookahead_draft` and `lookahead_verify`; ``csrc/torch/lookahead.h`` repeats
them."""

from __future__ import annotations

import torch
from torch import Tensor

from .._shared.arguments import (
    QUADS,
    check_contiguous,
    check_matrix,
    check_placement,
    check_table,
    check_vector,
    dtype_name,
    got,
    shape_text,
)
from .._shared.steps import check_x0_clamp

KNOWN = ("known_x", "known_0", "gain", "known_row", "known_count")


def check_lookahead_draft(
    x: Tensor,
    memory: Tensor,
    coef: Tensor,
    plan: Tensor,
    row: Tensor,
    count: Tensor,
    draw: Tensor,
    key: Tensor,
    stream: Tensor,
    rows: int,
    *,
    x0_clamp: float | None = None,
    **options: Tensor | None,
) -> None:
    name = "lookahead_draft"
    if x.dim() != 2:
        raise RuntimeError(f"{name}: x must be [B, d], got {x.dim()} dimensions")
    batch, d = x.shape
    check_matrix(name, "x", x, torch.float32, (batch, d))
    if rows < 1:
        raise RuntimeError(f"{name}: rows must be 1 or more, got {rows}")
    check_matrix(name, "v", options.get("v"), torch.float32, (batch, d))
    tensors = {"x": x, "v": options.get("v")}
    place = (memory, coef, plan, row, count, draw, key, stream)
    check_window(name, batch, rows, d, tensors, place, "v", options, x0_clamp)


def check_window(
    name: str,
    batch: int,
    rows: int,
    d: int,
    tensors: dict[str, Tensor | None],
    place: tuple[Tensor, ...],
    velocity: str,
    options: dict[str, Tensor | None],
    x0_clamp: float | None,
) -> None:
    """Checks common to both ops; `place` is memory to stream."""
    if not 1 <= d <= 2 * QUADS:
        raise RuntimeError(f"{name}: a sample must have 1 to {2 * QUADS} elements, got {d}")
    memory, coef, plan, row, count, draw, key, stream = place
    if memory.dtype != torch.float32 or tuple(memory.shape) not in ((batch, d), (batch, 2 * d)):
        raise RuntimeError(
            f"{name}: memory must be float32 {shape_text((batch, d))} or "
            f"{shape_text((batch, 2 * d))}, {got(memory)}"
        )
    check_table(name, coef)
    check_contiguous(name, "plan", plan, torch.float32, tuple(coef.shape))
    check_vector(name, "row", row, torch.int32, batch)
    check_vector(name, "count", count, torch.int32, batch)
    check_vector(name, "draw", draw, torch.int32, batch, shared=True)
    check_vector(name, "key", key, torch.int64, 1)
    check_vector(name, "stream", stream, torch.int64, batch)
    given = {option: t for option, t in options.items() if t is not None}
    if (velocity in given) != ("op" in given):
        raise RuntimeError(f"{name}: {velocity} and op go together: pass both or neither")
    check_vector(name, "op", given.get("op"), torch.int32, coef.shape[0])
    known = [option for option in KNOWN if option in given]
    if known and len(known) < len(KNOWN):
        raise RuntimeError(f"{name}: {', '.join(KNOWN)} go together: pass all or none")
    if known:
        entries = given["gain"].shape[1] if given["gain"].dim() == 2 else 0
        if entries < 1:
            raise RuntimeError(f"{name}: gain must be float32 [{batch}, K], {got(given['gain'])}")
        check_contiguous(name, "gain", given["gain"], torch.float32, (batch, entries))
        for option in ("known_x", "known_0"):
            check_matrix(name, option, given[option], torch.float32, (batch, entries, d))
        for option in ("known_row", "known_count"):
            check_vector(name, option, given[option], torch.int32, batch)
    check_matrix(name, "noise", given.get("noise"), torch.float32, (batch, rows, d))
    for option in ("noise", "x0_clamp"):
        if "op" in given and (x0_clamp if option == "x0_clamp" else given.get(option)) is not None:
            raise RuntimeError(f"{name}: {option} is for tables of diffusion_step rows, without op")
    check_vector(name, "noise_scale", given.get("noise_scale"), torch.float32, batch, shared=True)
    check_x0_clamp(name, x0_clamp)
    tensors = {**tensors, "memory": memory, "coef": coef, "plan": plan, "row": row}
    tensors |= {"count": count, "draw": draw, "key": key, "stream": stream, **options}
    check_placement(name, tensors, (), rowwise=True)


def check_outs(name: str, outs: Tensor, shape: tuple[int, ...]) -> None:
    if outs.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise RuntimeError(
            f"{name}: outs must be float32, float16 or bfloat16, got {dtype_name(outs.dtype)}"
        )
    check_matrix(name, "outs", outs, outs.dtype, shape)
