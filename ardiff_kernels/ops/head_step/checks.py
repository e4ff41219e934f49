"""Argument checks of `head_step`; ``csrc/torch/head.h`` repeats them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._shared.arguments import check_placement, dtype_name, got, shape_text
from ..packed_linear.packing import is_packed, matrix_shape

MOST_DEPTH = 2**24  # as in C++, where numbers of columns could overflow
NORMS, MLPS = ("layer", "rms"), ("plain", "gated")
WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.int8)
MODULATION_DTYPES = (torch.float32, torch.bfloat16)


def _weight(
    op: str, name: str, t: Tensor, dtypes: Sequence[torch.dtype], shape: Sequence[int | str]
) -> None:
    """A contiguous matrix of one of these dtypes, on a CPU packed or not; a letter in the shape is
    any size from 1."""
    ok = t.dim() == 2 and t.is_contiguous() or t.device.type == "cpu" and is_packed(t)
    ok = ok and t.dtype in dtypes
    sizes = zip(matrix_shape(t), shape, strict=True) if ok else ()
    if not ok or any(m < 1 if isinstance(n, str) else m != n for m, n in sizes):
        kinds = " or ".join(dtype_name(d) for d in dict.fromkeys(dtypes))
        raise RuntimeError(
            f"{op}: {name} must be a contiguous {kinds} {shape_text(shape)} or, on a CPU, its "
            f"packed form, {got(t)}"
        )


def _bias(op: str, name: str, t: Tensor, rows: int) -> None:
    ok = t.dim() == 1 and t.dtype == torch.float32 and t.is_contiguous()
    if not (ok and t.shape[0] in (rows, 0)):
        raise RuntimeError(
            f"{op}: {name} must be a contiguous float32 [{rows}], or [0] for none, {got(t)}"
        )


def _weights(op: str, d: int, weights: Sequence[Tensor], mlp: str, depth: int) -> int:
    """Checks the list `weights`; returns the width."""
    if len(weights) != 4 * depth + 4:
        raise RuntimeError(
            f"{op}: weights must hold {4 * depth + 4} tensors at depth {depth} (a matrix and its "
            f"bias for the input, twice per block, and for the final layer), got {len(weights)}"
        )
    kind = weights[2].dtype
    if kind not in WEIGHT_DTYPES:
        raise RuntimeError(
            f"{op}: weights[2] must be float32, bfloat16 or int8, got {dtype_name(kind)}"
        )
    outer = (torch.float32, kind)
    _weight(op, "weights[0]", weights[0], outer, ("w", d))
    width = matrix_shape(weights[0])[0]
    _bias(op, "weights[1]", weights[1], width)
    for i in range(2, 4 * depth + 2, 4):
        _weight(op, f"weights[{i}]", weights[i], (kind,), ("f", width))
        inner = matrix_shape(weights[i])[0]
        _bias(op, f"weights[{i + 1}]", weights[i + 1], inner)
        if mlp == "gated":
            if inner % 2:
                raise RuntimeError(
                    f"{op}: weights[{i}] must hold gate and up, an even number of rows, got "
                    f"{shape_text(weights[i].shape)}"
                )
            inner //= 2
        _weight(op, f"weights[{i + 2}]", weights[i + 2], (kind,), (width, inner))
        _bias(op, f"weights[{i + 3}]", weights[i + 3], width)
    last = 4 * depth + 2
    _weight(op, f"weights[{last}]", weights[last], outer, ("out", width))
    _bias(op, f"weights[{last + 1}]", weights[last + 1], matrix_shape(weights[last])[0])
    return width


def _scales(op: str, weights: Sequence[Tensor], scales: Sequence[Tensor]) -> None:
    matrices = weights[::2]
    count = len(matrices) if any(m.dtype == torch.int8 for m in matrices) else 0
    if len(scales) != count:
        raise RuntimeError(
            f"{op}: scales must hold {count} tensors (with int8 matrices one per matrix, else "
            f"none), got {len(scales)}"
        )
    for i, scale in enumerate(scales):
        rows = matrix_shape(matrices[i])[0] if matrices[i].dtype == torch.int8 else 0
        ok = scale.dim() == 1 and scale.dtype == torch.float32 and scale.is_contiguous()
        if not (ok and scale.shape[0] == rows):
            raise RuntimeError(
                f"{op}: scales[{i}] must be a contiguous float32 [{rows}], {got(scale)}"
            )


def check_head(
    op: str,
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
) -> None:
    if x.dim() != 2:
        raise RuntimeError(f"{op}: x must be [N, d], got {x.dim()} dimensions")
    if x.dtype != torch.float32:
        raise RuntimeError(f"{op}: x must be float32, got {dtype_name(x.dtype)}")
    rows, d = x.shape
    if d < 1:
        raise RuntimeError(
            f"{op}: x must have at least 1 element per row, got {shape_text(x.shape)}"
        )
    if norm not in NORMS:
        raise RuntimeError(f"{op}: norm must be layer or rms, got {norm}")
    if mlp not in MLPS:
        raise RuntimeError(f"{op}: mlp must be plain or gated, got {mlp}")
    if depth < 1:
        raise RuntimeError(f"{op}: depth must be at least 1, got {depth}")
    if depth > MOST_DEPTH:
        raise RuntimeError(f"{op}: depth must be at most {MOST_DEPTH}, got {depth}")
    if not 1 <= ways <= 3:
        raise RuntimeError(f"{op}: ways must be 1, 2 or 3, got {ways}")
    if not eps >= 0:
        raise RuntimeError(f"{op}: eps must be at least 0, got {eps}")
    width = _weights(op, d, weights, mlp, depth)
    _scales(op, weights, scales)
    columns = (3 * depth + 2) * width
    ok = modulation.dim() == 3 and modulation.dtype in MODULATION_DTYPES
    ok = ok and modulation.shape[0] >= 1 and modulation.shape[2] == columns
    ok = ok and modulation.is_contiguous()
    if not (ok and (modulation.shape[1] == ways or modulation.shape[1] == ways * rows)):
        either = f"{ways}" if rows == 1 else f"{ways} or {ways * rows}"
        raise RuntimeError(
            f"{op}: modulation must be a contiguous float32 or bfloat16 "
            f"[S, {either}, {columns}] with S >= 1, {got(modulation)}"
        )
    if not 0 <= set < modulation.shape[0]:
        raise RuntimeError(f"{op}: set must lie in [0, {modulation.shape[0]}), got {set}")
    tensors = {"x": x, "modulation": modulation}
    tensors |= {f"weights[{i}]": t for i, t in enumerate(weights)}
    tensors |= {f"scales[{i}]": t for i, t in enumerate(scales)}
    check_placement(op, tensors, ())
