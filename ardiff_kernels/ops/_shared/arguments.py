"""What a check of an op's arguments consists of: dtypes, shapes, devices, strides.

Each function raises RuntimeError, as PyTorch's own operators do, and says what was wrong, what was
expected and what was given. The C++ kernels repeat the checks in the same order and with the same
words (``csrc/torch/checks.h``), so that a mistake reads the same on every backend.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .tables import TABLE_WIDTH

MODEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
QUADS = 2**32  # of a stream at one counter


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def shape_text(shape: Sequence[int]) -> str:
    return "[" + ", ".join(str(n) for n in shape) + "]"


def got(t: Tensor) -> str:
    return f"got {dtype_name(t.dtype)} {shape_text(t.shape)}"


def width(t: Tensor) -> int:
    """Elements of a row of a tensor `[B, ...]`."""
    return math.prod(t.shape[1:])


def check_dimensions(op: str, name: str, t: Tensor) -> None:
    if t.dim() < 2:
        raise RuntimeError(f"{op}: {name} must be [B, d] or [B, ...], got {t.dim()} dimensions")


def check_vector(
    op: str, name: str, t: Tensor | None, dtype: torch.dtype, rows: int, shared: bool = False
) -> None:
    """A contiguous 1-D tensor of `dtype` and length `rows` (or 1, where it may be `shared`)."""
    if t is None:
        return
    lengths = [rows] if rows == 1 or not shared else [rows, 1]
    ok = t.dim() == 1 and t.dtype == dtype and t.is_contiguous()
    if not (ok and any(t.shape[0] == n for n in lengths)):
        raise RuntimeError(
            f"{op}: {name} must be a contiguous {dtype_name(dtype)} "
            f"{' or '.join(f'[{n}]' for n in lengths)}, {got(t)}"
        )


def check_matrix(
    op: str, name: str, t: Tensor | None, dtype: torch.dtype, shape: Sequence[int]
) -> None:
    if t is None:
        return
    ok = t.dtype == dtype and tuple(t.shape) == tuple(shape)
    if not ok:
        raise RuntimeError(
            f"{op}: {name} must be {dtype_name(dtype)} {shape_text(shape)}, {got(t)}"
        )


def check_contiguous(
    op: str, name: str, t: Tensor | None, dtype: torch.dtype, shape: tuple
) -> None:
    """A contiguous tensor of this dtype and shape, where it is given."""
    if t is None:
        return
    if not (t.dtype == dtype and tuple(t.shape) == tuple(shape) and t.is_contiguous()):
        raise RuntimeError(
            f"{op}: {name} must be a contiguous {dtype_name(dtype)} {shape_text(shape)}, {got(t)}"
        )


def check_table(op: str, coef: Tensor) -> None:
    if not (
        coef.dtype == torch.float32
        and coef.dim() == 2
        and coef.shape[1] == TABLE_WIDTH
        and coef.shape[0] >= 1
        and coef.is_contiguous()
    ):
        raise RuntimeError(
            f"{op}: coef must be a contiguous float32 [T, {TABLE_WIDTH}] table with T >= 1, "
            f"{got(coef)}"
        )


def check_placement(
    op: str,
    tensors: Mapping[str, Tensor | None],
    written: Sequence[str],
    rowwise: bool = False,
) -> None:
    """One device, unit stride inside a row, and no overlapping rows where we write; of tensors
    `[B, ...]` too where the op is `rowwise`."""
    present = {name: t for name, t in tensors.items() if t is not None}
    first, device = next((name, t.device) for name, t in present.items())
    for name, t in present.items():
        if t.device != device:
            raise RuntimeError(
                f"{op}: all tensors must be on one device, but {first} is on {device} and "
                f"{name} on {t.device}"
            )
    for name, t in present.items():
        if t.dim() < 2 or (t.dim() > 2 and not rowwise):
            continue
        rows, d = t.shape[0], width(t)
        if rows > 0 and not _contiguous_rows(t):
            rule = "have unit stride in its last dimension"
            raise RuntimeError(
                f"{op}: {name} must {rule if t.dim() == 2 else 'be contiguous inside a row'}, got "
                f"strides {shape_text(t.stride())}; call .contiguous() first"
            )
        if name in written and rows > 1 and t.stride(0) < d:
            raise RuntimeError(
                f"{op}: {name} is written in place but its rows overlap (row stride "
                f"{t.stride(0)}, {d} elements per row); clone it first"
            )
    for one, other in itertools.combinations([n for n in written if n in present], 2):
        if _same_memory(present[one], present[other]):
            raise RuntimeError(
                f"{op}: {one} and {other} are written in place but share their memory; clone one"
            )


def _contiguous_rows(t: Tensor) -> bool:
    expected = 1
    for n, stride in zip(reversed(t.shape[1:]), reversed(t.stride()[1:]), strict=True):
        if n == 0:
            return True
        if n != 1 and stride != expected:
            return False
        expected *= n
    return True


def _same_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors begin at one address; subclasses such as fake tensors have none."""
    if a is b:
        return a.numel() > 0
    real = type(a) is type(b) is Tensor
    return real and a.numel() > 0 and b.numel() > 0 and a.data_ptr() == b.data_ptr()
