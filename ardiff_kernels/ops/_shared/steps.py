"""Checks of the step ops: `uld_step`, `diffusion_step` and the gradients of the latter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .arguments import (
    MODEL_DTYPES,
    QUADS,
    check_dimensions,
    check_matrix,
    check_placement,
    check_table,
    check_vector,
    dtype_name,
    shape_text,
    width,
)

# What each optional tensor is like. Its place among the arguments is in the signature of its op; in
# C++ both are in csrc/math/step_options.h.
OUTPUTS = ("uncond_out", "uncond_out2")  # like the model output
VALUES = ("guidance", "guidance2", "noise_scale")  # float32 [B] or [1]
NORMALS = ("noise", "noise2")  # float32 of the state's shape


def _widened(shape: Sequence[int], times: int) -> tuple[int, ...]:
    rows, n, *rest = shape
    return (rows, times * n, *rest)


def check_step(
    op: str,
    state: Mapping[str, Tensor],
    dtypes: Sequence[torch.dtype],
    elements_a_quad: int,
    learned_range: bool,
    written: Sequence[str],
    model_out: Tensor,
    coef: Tensor,
    row: Tensor,
    draw: Tensor,
    key: Tensor,
    stream: Tensor,
    options: Mapping[str, Tensor | None],
    memories: int = 1,
) -> None:
    """Checks common to the step ops; `state` lists the state tensors, the leading one first.

    `state["memory"]` may be up to `memories` times as long in dimension 1.
    """
    lead, x = next(iter(state.items()))
    check_dimensions(op, lead, x)
    kinds = " or ".join(dtype_name(t) for t in dtypes)
    if x.dtype not in dtypes:
        raise RuntimeError(f"{op}: {lead} must be {kinds}, got {dtype_name(x.dtype)}")
    rows, d = x.shape[0], width(x)
    limit = elements_a_quad * QUADS
    if not 1 <= d <= limit:
        raise RuntimeError(
            f"{op}: {lead} must have between 1 and {limit} elements per row, got {d}"
        )
    for name, t in state.items():
        most = memories if name == "memory" else 1
        longer = [_widened(x.shape, times) for times in range(2, most + 1)]
        if t.shape != x.shape and tuple(t.shape) not in longer:
            wide = " or ".join(map(shape_text, longer))
            wide = f" (or {wide} with more memories)" if wide else ""
            raise RuntimeError(
                f"{op}: {name} must have the shape of {lead} {shape_text(x.shape)}{wide}, "
                f"got {shape_text(t.shape)}"
            )
        if t.dtype != x.dtype:
            raise RuntimeError(
                f"{op}: {name} must have the dtype of {lead} ({dtype_name(x.dtype)}), "
                f"got {dtype_name(t.dtype)}"
            )
    if model_out.dtype not in MODEL_DTYPES:
        raise RuntimeError(
            f"{op}: model_out must be float32, float16 or bfloat16, "
            f"got {dtype_name(model_out.dtype)}"
        )
    double = _widened(x.shape, 2) if learned_range else None
    wide = f" (or {shape_text(double)} with learned-range variance)" if double else ""
    if model_out.shape != x.shape and tuple(model_out.shape) != double:
        raise RuntimeError(
            f"{op}: model_out must have the shape of {lead} {shape_text(x.shape)}{wide}, got "
            f"{shape_text(model_out.shape)}"
        )
    check_table(op, coef)
    check_vector(op, "row", row, torch.int32, rows, shared=True)
    check_vector(op, "draw", draw, torch.int32, rows, shared=True)
    check_vector(op, "key", key, torch.int64, 1)
    check_vector(op, "stream", stream, torch.int64, rows)
    _check_options(op, x, model_out, options)
    tensors = {
        **state,
        "model_out": model_out,
        "coef": coef,
        "row": row,
        "draw": draw,
        "key": key,
        "stream": stream,
        **options,
    }
    check_placement(op, tensors, written, rowwise=True)


def _check_options(
    op: str, x: Tensor, model_out: Tensor, options: Mapping[str, Tensor | None]
) -> None:
    def given(name: str) -> bool:
        return options.get(name) is not None

    if not (given("uncond_out") == given("guidance")):
        raise RuntimeError(f"{op}: uncond_out and guidance go together: pass both or neither")
    if not (
        given("uncond_out2") == given("guidance2")
        and (given("uncond_out") or not given("uncond_out2"))
    ):
        raise RuntimeError(
            f"{op}: uncond_out2 and guidance2 go together, and only beside uncond_out and guidance"
        )
    if "noise2" in options:
        if not (given("noise") == given("noise2")):
            raise RuntimeError(f"{op}: noise and noise2 go together: pass both or neither")
    for name in OUTPUTS:
        check_matrix(op, name, options.get(name), model_out.dtype, model_out.shape)
    for name in VALUES:
        check_vector(op, name, options.get(name), torch.float32, x.shape[0], shared=True)
    for name in NORMALS:
        check_matrix(op, name, options.get(name), torch.float32, x.shape)
    check_matrix(op, "x0", options.get("x0"), x.dtype, x.shape)
    check_matrix(op, "z_model", options.get("z_model"), torch.bfloat16, x.shape)


def check_x0_clamp(op: str, x0_clamp: float | None) -> None:
    if not (x0_clamp is None or x0_clamp > 0):
        raise RuntimeError(f"{op}: x0_clamp must be positive, got {x0_clamp}")
