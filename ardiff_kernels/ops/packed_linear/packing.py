"""The packed form of a matrix: its weights in the order in which the kernels read them.

A panel is 16 rows. Within it come words of 4 bytes, one for each of the 16 rows in turn, then those
of the next columns: a word holds 1 column of float32, 2 of bfloat16 or 4 of int8. So a vector of
sixteen lanes reads a panel from its begin to its end, a lane being a row, and 16 words of columns
are a tile as the matrix units of a CPU take it. Rows are padded to whole panels, columns to eight
words (float32) or sixteen (the others), with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PANEL = 16
# Columns to a word, and to which a row is padded.
WORD = {torch.float32: 1, torch.bfloat16: 2, torch.int8: 4}
STEP = {torch.float32: 8, torch.bfloat16: 32, torch.int8: 64}


class PackedWeight(NamedTuple):
    """A matrix as `packed_linear` takes it.

    Attributes:
        weight: float32, bfloat16 or int8 `[panels, words, 16, columns to a word]`.
        rows: of the matrix, O.
        scale: float32 `[O]` with int8 weights, else None.
    """

    weight: Tensor
    rows: int
    scale: Tensor | None = None


def packed_shape(rows: int, columns: int, dtype: torch.dtype) -> tuple[int, int, int, int]:
    """Shape of the packed form of a matrix `[rows, columns]`."""
    word, step = WORD[dtype], STEP[dtype]
    words = -(-columns // step) * (step // word)
    return -(-rows // PANEL), words, PANEL, word


def pack(matrix: Tensor) -> Tensor:
    """The packed form of a float32, bfloat16 or int8 matrix `[O, K]`."""
    rows, columns = matrix.shape
    panels, words, _, word = packed_shape(rows, columns, matrix.dtype)
    padded = F.pad(matrix, (0, words * word - columns, 0, panels * PANEL - rows))
    return padded.view(panels, PANEL, words, word).transpose(1, 2).contiguous()


def is_packed(t: Tensor) -> bool:
    """Whether `t` is the packed form of a matrix of whole panels and whole steps of columns."""
    if t.dim() != 4 or t.dtype not in WORD or not t.is_contiguous():
        return False
    return tuple(t.shape) == packed_shape(*matrix_shape(t), t.dtype)


def is_whole(matrix: Tensor) -> bool:
    """Whether a matrix has whole panels and steps of columns, so that it is packed unpadded."""
    rows, columns = matrix.shape
    return rows % PANEL == 0 and columns % STEP[matrix.dtype] == 0


def matrix_shape(t: Tensor) -> tuple[int, int]:
    """Rows and columns of a matrix, packed (padding included) or not."""
    if t.dim() != 4:
        return t.shape[0], t.shape[1]
    panels, words, rows, word = t.shape
    return panels * rows, words * word


def unpack(packed: Tensor, rows: int, columns: int) -> Tensor:
    """The matrix `[rows, columns]` of a packed form."""
    panels, words, _, word = packed.shape
    return packed.transpose(1, 2).reshape(panels * PANEL, words * word)[:rows, :columns]


def plain_matrix(t: Tensor) -> Tensor:
    """A matrix as it is, or that of a packed form without padding."""
    return unpack(t, *matrix_shape(t)) if t.dim() == 4 else t


def quantize_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """int8 `[rows, columns]` and float32 `[rows]`: each row's largest magnitude becomes 127.

    An element errs by half a scale, absmax / 254, at most.
    """
    scale = matrix.abs().amax(1) / 127
    steps = torch.where(scale > 0, scale, 1.0)[:, None]
    return (matrix / steps).round().to(torch.int8), scale


def pack_linear(
    weight: Tensor | Sequence[Tensor], dtype: torch.dtype | None = None
) -> PackedWeight:
    """Pack the weight of a linear layer, or of several that read the same input, for
    `packed_linear`.

    Args:
        weight: `[O, K]` as `torch.nn.Linear` holds it, or a sequence of `[O_i, K]`, whose rows are
            put one below the other (Q, K and V of an attention; gate and up of a SwiGLU).
        dtype: float32, bfloat16 or int8 (rounded with one scale per row, absmax / 127); default:
            that of the first weight.

    Returns:
        The packed weight, its number of rows and, with int8, the scale of each row.

    Raises:
        ValueError: weights that are no matrices of equal columns; another dtype.

    Example:
        >>> import torch
        >>> from ardiff_kernels import ops, pack_linear
        >>> q, k, v = (torch.randn(n, 64) for n in (64, 32, 32))
        >>> qkv = pack_linear([q, k, v], torch.bfloat16)
        >>> y = ops.packed_linear(torch.randn(2, 64), qkv.weight, qkv.rows)
        >>> [part.shape[1] for part in y.split([64, 32, 32], 1)]
        [64, 32, 32]
    """
    matrices = [weight] if isinstance(weight, Tensor) else list(weight)
    shapes = [tuple(m.shape) for m in matrices]
    if not shapes or any(len(s) != 2 or min(s) < 1 or s[1] != shapes[0][-1] for s in shapes):
        raise ValueError(
            "pack_linear: weight must be a matrix [O, K], or matrices of equal K, each with at "
            f"least 1 element, got {', '.join(map(str, shapes)) or 'none'}"
        )
    dtype = matrices[0].dtype if dtype is None else dtype
    if dtype not in WORD or any(not m.is_floating_point() for m in matrices):
        raise ValueError(
            f"pack_linear: expected weights of a floating-point dtype and dtype float32, bfloat16 "
            f"or int8, got {matrices[0].dtype} and {dtype}"
        )
    matrix = torch.cat([m.detach().float() for m in matrices])
    if dtype == torch.int8:
        codes, scale = quantize_rows(matrix)
        return PackedWeight(pack(codes), len(matrix), scale)
    return PackedWeight(pack(matrix.to(dtype)), len(matrix))
