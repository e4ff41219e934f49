"""Launches of `head_step`'s Triton kernels.

Up to 16 rows (patches times conditions) a block is two launches: its norm is made while the first
product reads its input. With more rows, a norm of its own costs less than making it anew in each
program, and a block is three. Input and final layer are one launch each, and one more for the final
norm of many rows. Batch-invariant calls take the way of many rows, in one tile per layer.

No launch depends on a value of a tensor, so that a CUDA graph can hold all steps of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .._shared.triton.kv import on_device_of
from ..packed_linear.packing import plain_matrix
from .triton_kernels import (
    LAYER,
    NONE,
    PLAIN,
    RESIDUAL,
    RMS,
    SILU,
    SWIGLU,
    few_rows,
    many_rows,
    norm_rows,
)

FEW = 16  # rows: those of a tile of the matrix units
_ENOUGH = 96  # programs that keep a large GPU busy
_HIP = bool(torch.version.hip)


class Tile(NamedTuple):
    """A product's tile: rows of x, rows and columns of the matrix, and how it is launched."""

    rows: int
    outs: int
    columns: int
    warps: int
    stages: int

    @property
    def constants(self) -> dict[str, int]:
        return {"BR": self.rows, "BO": self.outs, "BK": self.columns}

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": self.stages}


# From large to small.
_MANY = {
    torch.bfloat16: (
        Tile(128, 128, 64, 8, 4),
        Tile(128, 64, 64, 4, 4),
        Tile(64, 64, 64, 4, 4),
        Tile(64, 32, 128, 4, 4),
        Tile(32, 16, 128, 4, 4),
    ),
    torch.int8: (
        Tile(128, 64, 64, 8, 3),
        Tile(64, 64, 64, 4, 3),
        Tile(64, 32, 64, 4, 4),
        Tile(32, 16, 128, 4, 4),
    ),
    torch.float32: (Tile(64, 64, 32, 8, 2), Tile(32, 32, 32, 4, 3)),
}
# The place there of the tile of batch-invariant calls: 64 rows (float32: 32) by 32 outputs.
_INVARIANT = {torch.bfloat16: 3, torch.int8: 2, torch.float32: 1}
SLICES = 8  # of the columns in `few_rows`: one per warp


def parts(matrix: torch.dtype) -> int:
    """bfloat16 parts of an activation; 0: it is multiplied in float32."""
    return {torch.bfloat16: 1, torch.int8: 3, torch.float32: 0}[matrix]


def activation(matrix: torch.dtype) -> torch.dtype:
    """The type in which a launch leaves what a matrix of this type multiplies."""
    return torch.bfloat16 if matrix == torch.bfloat16 else torch.float32


def few_tile(matrix: torch.dtype, normed: bool, hip: bool = _HIP) -> Tile:
    """Eight rows of a matrix: 128 programs for 1,024."""
    columns = 16 if matrix == torch.float32 else 32
    if hip:
        return Tile(FEW, 16, columns, SLICES, 2)
    return Tile(FEW, 8, columns, SLICES, 3 if normed else 5)


def many_tile(
    rows: int, outs: int, matrix: torch.dtype, gated: bool, invariant: bool, hip: bool = _HIP
) -> Tile:
    """The largest tile that leaves enough programs. A gated one holds two of half the size."""
    tiles = [
        tile._replace(outs=tile.outs // (2 if gated else 1), stages=2 if hip else tile.stages)
        for tile in _MANY[matrix]
    ]
    if invariant:
        return tiles[_INVARIANT[matrix]]
    for tile in tiles:
        if triton.cdiv(rows, tile.rows) * triton.cdiv(outs, tile.outs) >= _ENOUGH:
            return tile
    return tiles[-1]


def interpreted() -> bool:
    """Then a program costs about 70 ms, so that programs are large; columns keep their order."""
    return not isinstance(few_rows, triton.JITFunction)


def _power(n: int, least: int, most: int) -> int:
    return min(most, max(least, triton.next_power_of_2(n)))


class Head:
    """The launches of one evaluation, and what passes from one to the next."""

    def __init__(
        self,
        x: Tensor,
        modulation: Tensor,
        weights: Sequence[Tensor],
        scales: Sequence[Tensor],
        ways: int,
        eps: float,
        norm: int,
        invariant: bool,
    ) -> None:
        self.m, self.weights, self.scales = modulation, weights, scales
        self.ways, self.eps, self.norm, self.invariant = ways, eps, norm, invariant
        self.patches, self.rows = len(x), ways * len(x)
        self.width = weights[0].shape[0]
        self.h = x.new_empty(self.rows, self.width)
        self.few = self.rows <= FEW and not invariant
        self.before = few_tile(torch.float32, False).outs
        if interpreted():
            self.before = _power(self.width, 16, 1024)
        self.tiles = triton.cdiv(self.width, self.before)
        self.stat = x.new_empty(2, self.rows, self.tiles) if self.few else None

    def _matrix(self, i: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        matrix, bias = self.weights[2 * i : 2 * i + 2]
        scale = self.scales[i] if self.scales and len(self.scales[i]) else None
        return matrix, scale, bias if len(bias) else None

    def _shared(self) -> bool:
        return len(self.m) != self.rows

    def product_of_few(
        self, i: int, x: Tensor, y: Tensor, *, epilogue: int = PLAIN, norm: int = NONE,
        after: int = NONE, column: int = 0, gate: int = 0, copies: int = 1,
    ) -> None:  # fmt: skip
        """The `i`-th layer of x `[rows, columns]`, whose norm it makes, into y."""
        matrix, scale, bias = self._matrix(i)
        outs, columns = y.shape[1], matrix.shape[1]
        tile = few_tile(matrix.dtype, norm != NONE)
        if interpreted():
            tile = tile._replace(outs=_power(outs, 16, 1024))
        few_rows[triton.cdiv(outs, tile.outs), triton.cdiv(len(x), tile.rows)](
            x, self.stat, self.m, matrix, scale, bias, y, self.stat,
            len(x), self.patches, outs, columns, x.stride(0), self.m.stride(0), column, gate,
            self.tiles, self.eps,
            NORM=norm, EPILOGUE=epilogue, AFTER=after, SHARED=self._shared(), COPIES=copies,
            PARTS=parts(matrix.dtype), BT=triton.next_power_of_2(self.tiles), BEFORE=self.before,
            S=SLICES, **tile.constants, **tile.options,
        )  # fmt: skip

    def product_of_many(
        self, i: int, x: Tensor, y: Tensor, *, epilogue: int = PLAIN, gate: int = 0,
        copies: int = 1,
    ) -> None:  # fmt: skip
        matrix, scale, bias = self._matrix(i)
        outs, columns = y.shape[1], matrix.shape[1]
        tile = many_tile(len(x), outs, matrix.dtype, epilogue == SWIGLU, self.invariant)
        if interpreted():
            tile = tile._replace(rows=_power(len(x), 16, 1024), outs=_power(outs, 16, 1024))
        many_rows[triton.cdiv(outs, tile.outs), triton.cdiv(len(x), tile.rows)](
            x, self.m, matrix, scale, bias, y,
            len(x), self.patches, outs, columns, x.stride(0), self.m.stride(0), gate,
            EPILOGUE=epilogue, SHARED=self._shared(), COPIES=copies, PARTS=parts(matrix.dtype),
            **tile.constants, **tile.options,
        )  # fmt: skip

    def normalize(self, y: Tensor, column: int) -> None:
        """y from h, with the shift at `column` of a row's modulation and the scale behind it."""
        rows = _power(self.rows, 1, 1024) if interpreted() else 1
        norm_rows[(triton.cdiv(self.rows, rows),)](
            self.h, self.m, y, self.rows, self.patches, self.width, self.m.stride(0), column,
            self.eps, SHARED=self._shared(), NORM=self.norm,
            BR=rows, BW=triton.next_power_of_2(self.width), num_warps=4,
        )  # fmt: skip

    def scratch(self, *layers: int) -> list[Tensor]:
        """Inputs of these layers, in one memory."""
        matrices = [self.weights[2 * i] for i in layers]
        most = max(m.shape[1] * activation(m.dtype).itemsize for m in matrices)
        memory = self.h.new_empty(self.rows * most, dtype=torch.uint8)
        return [
            memory[: self.rows * m.shape[1] * dtype.itemsize].view(dtype).view(self.rows, -1)
            for m, dtype in ((m, activation(m.dtype)) for m in matrices)
        ]

    def run_few(self, x: Tensor, result: Tensor, depth: int, epilogue: int) -> None:
        h, norm = self.h, self.norm
        self.product_of_few(0, x, h, after=norm, copies=self.ways)
        inner = self.scratch(*range(2, 2 * depth + 1, 2))
        for block, u in enumerate(inner):
            column = 3 * block * self.width
            self.product_of_few(2 * block + 1, h, u, epilogue=epilogue, norm=norm, column=column)
            gate = column + 2 * self.width
            self.product_of_few(2 * block + 2, u, h, epilogue=RESIDUAL, after=norm, gate=gate)
        self.product_of_few(2 * depth + 1, h, result, norm=norm, column=3 * depth * self.width)

    def run_many(self, x: Tensor, result: Tensor, depth: int, epilogue: int) -> None:
        self.product_of_many(0, x, self.h, copies=self.ways)
        *normed, last = self.scratch(*range(1, 2 * depth + 2, 2))
        inner = self.scratch(*range(2, 2 * depth + 1, 2))
        for block, (y, u) in enumerate(zip(normed, inner, strict=True)):
            column = 3 * block * self.width
            self.normalize(y, column)
            self.product_of_many(2 * block + 1, y, u, epilogue=epilogue)
            gate = column + 2 * self.width
            self.product_of_many(2 * block + 2, u, self.h, epilogue=RESIDUAL, gate=gate)
        self.normalize(last, 3 * depth * self.width)
        self.product_of_few(2 * depth + 1, last, result)


def head_step(
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
) -> Tensor:
    # Packed matrices are on a CPU, where Triton runs in its interpreter.
    weights = [plain_matrix(w).contiguous() for w in weights]
    result = x.new_empty((ways, len(x), weights[-2].shape[0]))
    if len(x) == 0:
        return result
    epilogue = SWIGLU if mlp == "gated" else SILU
    kind = RMS if norm == "rms" else LAYER
    rest: tuple[Any, ...] = (weights, scales, ways, eps, kind, batch_invariant)
    with on_device_of(x):
        head = Head(x, modulation[set], *rest)
        run = head.run_few if head.few else head.run_many
        run(x, result.view(head.rows, -1), depth, epilogue)
    return result
