"""Argument checks of `mala_accept`; ``csrc/torch/mala_accept.h`` repeats them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .._shared.arguments import (
    MODEL_DTYPES,
    check_dimensions,
    check_matrix,
    check_placement,
    check_table,
    check_vector,
    dtype_name,
    shape_text,
    width,
)


def check_accept(
    op: str,
    written: tuple[str, ...],
    x: Tensor,
    y: Tensor,
    out_x: Tensor,
    out_y: Tensor,
    anchor: Tensor,
    coef: Tensor,
    row: Tensor,
    draw: Tensor,
    key: Tensor,
    stream: Tensor,
    **options: Tensor | None,
) -> None:
    check_dimensions(op, "x", x)
    if x.dtype != torch.float32:
        raise RuntimeError(f"{op}: x must be float32, got {dtype_name(x.dtype)}")
    rows, d = x.shape[0], width(x)
    if d < 1:
        raise RuntimeError(f"{op}: x must have at least 1 element per row, got {d}")
    check_matrix(op, "y", y, torch.float32, x.shape)
    if out_x.dtype not in MODEL_DTYPES:
        raise RuntimeError(
            f"{op}: out_x must be float32, float16 or bfloat16, got {dtype_name(out_x.dtype)}"
        )
    if out_x.shape != x.shape:
        raise RuntimeError(
            f"{op}: out_x must have the shape of x {shape_text(x.shape)}, "
            f"got {shape_text(out_x.shape)}"
        )
    check_matrix(op, "out_y", out_y, out_x.dtype, x.shape)
    check_matrix(op, "anchor", anchor, torch.float32, x.shape)
    check_table(op, coef)
    check_vector(op, "row", row, torch.int32, rows, shared=True)
    check_vector(op, "draw", draw, torch.int32, rows, shared=True)
    check_vector(op, "key", key, torch.int64, 1)
    check_vector(op, "stream", stream, torch.int64, rows)
    _check_options(op, x, out_x.dtype, options)
    tensors = {"x": x, "y": y, "out_x": out_x, "out_y": out_y, "anchor": anchor, "coef": coef}
    tensors |= {"row": row, "draw": draw, "key": key, "stream": stream, **options}
    check_placement(op, tensors, written, rowwise=True)


def _check_options(
    op: str, x: Tensor, out_dtype: torch.dtype, options: Mapping[str, Tensor | None]
) -> None:
    rows = x.shape[0]

    def given(name: str) -> bool:
        return options.get(name) is not None

    for first, second in (("v_x", "v_y"), ("energy_x", "energy_y")):
        if given(first) != given(second):
            raise RuntimeError(f"{op}: {first} and {second} go together: pass both or neither")
    if given("out_mid") and given("energy_x"):
        raise RuntimeError(f"{op}: out_mid and energies exclude each other: pass one or neither")
    check_matrix(op, "v_x", options.get("v_x"), torch.float32, x.shape)
    check_matrix(op, "v_y", options.get("v_y"), torch.float32, x.shape)
    check_matrix(op, "out_mid", options.get("out_mid"), out_dtype, x.shape)
    check_vector(op, "energy_x", options.get("energy_x"), torch.float32, rows)
    check_vector(op, "energy_y", options.get("energy_y"), torch.float32, rows)
    check_vector(op, "ball_radius", options.get("ball_radius"), torch.float32, rows, shared=True)
    check_vector(op, "accepted", options.get("accepted"), torch.bool, rows)
    check_vector(op, "log_alpha", options.get("log_alpha"), torch.float32, rows)
