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
from torch.nn import Parameter

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
    changed = {name: present[name] for name in written if name in present}
    for one, other in itertools.combinations(changed, 2):
        if _share_memory(changed[one], changed[other]):
            raise RuntimeError(
                f"{op}: {one} and {other} are written in place but share their memory; clone one"
            )
    read = {name: t for name, t in present.items() if name not in changed}
    check_apart(op, changed, read, rowwise)


def check_apart(
    op: str, written: Mapping[str, Tensor], read: Mapping[str, Tensor], rowwise: bool
) -> None:
    """That what is read lies apart from what is written, or (of a `rowwise` op) coincides with it:
    each element is read before it is written."""
    for (other, r), (one, w) in itertools.product(read.items(), written.items()):
        if _share_memory(w, r) and not (rowwise and _coincide(w, r)):
            raise RuntimeError(
                f"{op}: {one} is written in place but shares its memory with {other}; clone one"
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


def _has_memory(t: Tensor) -> bool:
    """Whether a tensor has an address; subclasses such as fake tensors have none."""
    return type(t) in (Tensor, Parameter) and t.numel() > 0


def _spans(t: Tensor) -> tuple[int, int, int, int]:
    """Where the elements of a tensor lie: first address, number of intervals of bytes, their
    stride and width. Of row-contiguous tensors exactly; of others one interval that holds all."""
    begin, size = t.data_ptr(), t.element_size()
    if t.dim() < 2 or not _contiguous_rows(t):
        last = sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
        return begin, 1, 1, (last + 1) * size
    row = width(t) * size
    stride = t.stride(0) * size if t.shape[0] > 1 else 0
    if stride == row:
        return begin, 1, 1, row * t.shape[0]
    return (begin, t.shape[0], stride, row) if stride else (begin, 1, 1, row)


def _share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether an element of one tensor lies on an element of another."""
    if not (_has_memory(a) and _has_memory(b)):
        return a is b and a.numel() > 0
    few, many = sorted((_spans(a), _spans(b)), key=lambda spans: spans[1])
    (begin, rows, stride, wide), (other, others, other_stride, other_wide) = few, many
    if begin + (rows - 1) * stride + wide <= other:
        return False
    if other + (others - 1) * other_stride + other_wide <= begin:
        return False
    for i in range(rows):
        at = begin + i * stride - other
        # The first of the other's intervals that ends behind the begin of this one.
        k = 0 if at < other_wide else (at - other_wide) // other_stride + 1
        if k < others and k * other_stride < at + wide:
            return True
    return False


def _coincide(a: Tensor, b: Tensor) -> bool:
    if a is b:
        return True
    same = a.dtype == b.dtype and a.shape == b.shape and a.data_ptr() == b.data_ptr()
    return same and (a.shape[0] <= 1 or a.stride(0) == b.stride(0))
