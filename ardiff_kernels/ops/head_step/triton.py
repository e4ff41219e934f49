"""Triton kernels of `head_step`: two launches a layer, a norm over rows and a product with an
epilogue. Tiles do not depend on the number of rows, so neither do a row's bits."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._head_checks import VIBEVOICE

PLAIN, SILU, SWIGLU, RESIDUAL = range(4)


@triton.jit
def normalize(
    h_ptr, m_ptr, y_ptr, rows, width, patches, m_stride, column, eps,
    SHARED: tl.constexpr, RMS: tl.constexpr, BR: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """y = n m + s, n the norm of a row of h; s lies at `column` of the row's modulation, m behind
    it."""
    row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)[:, None]
    lane = tl.arange(0, BW)[None, :]
    mask = (row < rows) & (lane < width)
    h = tl.load(h_ptr + row * width + lane, mask=mask, other=0.0)
    if not RMS:
        mean = tl.sum(h, 1, keep_dims=True) / width
        h = tl.where(mask, h - mean, 0.0)
    n = h / tl.sqrt_rn(tl.sum(h * h, 1, keep_dims=True) / width + eps)
    at = row // patches if SHARED else row
    m_row = m_ptr + at * m_stride + column + lane
    shift = tl.load(m_row, mask=mask, other=0.0).to(tl.float32)
    scale = tl.load(m_row + width, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * width + lane, n * scale + shift, mask=mask)


@triton.jit
def dot_tile(
    x_ptr, x_stride, w_ptr, scale_ptr, bias_ptr, row, out, rows, outs, columns,
    BR: tl.constexpr, BO: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """x W^T times scale plus bias for a tile of rows of x and of W, in float32."""
    sum = tl.zeros([BR, BO], tl.float32)
    for first in range(0, columns, BK):
        k = first + tl.arange(0, BK)[None, :]
        x_at = x_ptr + row[:, None] * x_stride + k
        w_at = w_ptr + out[:, None].to(tl.int64) * columns + k
        x = tl.load(x_at, mask=(row[:, None] < rows) & (k < columns), other=0.0)
        w = tl.load(w_at, mask=(out[:, None] < outs) & (k < columns), other=0).to(tl.float32)
        sum = tl.dot(x, tl.trans(w), sum, input_precision="ieee")
    if scale_ptr is not None:
        sum = sum * tl.load(scale_ptr + out, mask=out < outs, other=0.0)[None, :]
    if bias_ptr is not None:
        sum = sum + tl.load(bias_ptr + out, mask=out < outs, other=0.0)[None, :]
    return sum


@triton.jit
def linear(
    x_ptr, w_ptr, scale_ptr, bias_ptr, m_ptr, y_ptr, rows, outs, columns, x_stride, patches,
    m_stride, column,
    SHARED: tl.constexpr, EPILOGUE: tl.constexpr,
    BR: tl.constexpr, BO: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y from x W^T + b: itself (0), SiLU (1), SiLU times the lower half of W (2), or y + gate
    times it (3), the gate being at `column` of the row's modulation."""
    row = tl.program_id(1).to(tl.int64) * BR + tl.arange(0, BR)
    out = tl.program_id(0) * BO + tl.arange(0, BO)
    sum = dot_tile(
        x_ptr, x_stride, w_ptr, scale_ptr, bias_ptr, row, out, rows, outs, columns, BR, BO, BK
    )
    if EPILOGUE == 1 or EPILOGUE == 2:
        sum = sum / (1.0 + tl.exp(-sum))
    if EPILOGUE == 2:
        w_ptr += tl.cast(outs, tl.int64) * columns
        if scale_ptr is not None:
            scale_ptr += outs
        if bias_ptr is not None:
            bias_ptr += outs
        sum = sum * dot_tile(
            x_ptr, x_stride, w_ptr, scale_ptr, bias_ptr, row, out, rows, outs, columns, BR, BO, BK
        )
    mask = (row[:, None] < rows) & (out[None, :] < outs)
    y_at = y_ptr + row[:, None] * outs + out[None, :]
    if EPILOGUE == 3:
        at = row // patches if SHARED else row
        m_at = m_ptr + at[:, None] * m_stride + column + out[None, :]
        gate = tl.load(m_at, mask=mask, other=0.0).to(tl.float32)
        sum = tl.load(y_at, mask=mask, other=0.0) + gate * sum
    tl.store(y_at, sum, mask=mask)


class Tile(NamedTuple):
    """Rows of x, rows of a matrix and columns of a product's tile, and rows of a norm's."""

    rows: int
    outs: int
    columns: int
    norm_rows: int


def tile_of(rows: int, width: int) -> Tile:
    """The interpreter pays about 70 ms a program, so there a program is large."""
    if isinstance(linear, triton.JITFunction):
        return Tile(16, 32, 64, 1)
    all_rows = max(16, triton.next_power_of_2(rows))
    outs = min(1024, max(16, triton.next_power_of_2(width)))
    return Tile(all_rows, outs, outs, all_rows)


class Head:
    """The launches of one call."""

    def __init__(
        self, modulation: Tensor, weights: Sequence[Tensor], scales: Sequence[Tensor], N: int
    ) -> None:
        self.m, self.weights, self.scales, self.N = modulation, weights, scales, N

    def linear(self, i: int, x: Tensor, y: Tensor, epilogue: int = PLAIN, column: int = 0) -> None:
        matrix, bias = self.weights[2 * i : 2 * i + 2]
        scale = self.scales[i] if self.scales and len(self.scales[i]) else None
        rows, outs = y.shape
        tile = tile_of(rows, max(matrix.shape))
        linear[triton.cdiv(outs, tile.outs), triton.cdiv(rows, tile.rows)](
            x, matrix, scale, bias if len(bias) else None, self.m, y,
            rows, outs, matrix.shape[1], x.stride(0), self.N, self.m.stride(0), column,
            SHARED=len(self.m) != rows, EPILOGUE=epilogue,
            BR=tile.rows, BO=tile.outs, BK=tile.columns,
        )  # fmt: skip

    def norm(self, h: Tensor, y: Tensor, column: int, rms: bool, eps: float) -> None:
        rows, width = h.shape
        tile = tile_of(rows, width)
        normalize[(triton.cdiv(rows, tile.norm_rows),)](
            h, self.m, y, rows, width, self.N, self.m.stride(0), column, eps,
            SHARED=len(self.m) != rows, RMS=rms,
            BR=tile.norm_rows, BW=triton.next_power_of_2(width),
        )  # fmt: skip


def head_step(
    x: Tensor,
    modulation: Tensor,
    set: int,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor],
    *,
    family: int,
    depth: int,
    eps: float,
    ways: int = 1,
    batch_invariant: bool = False,
) -> Tensor:
    N, width, rms = x.shape[0], weights[0].shape[0], family == VIBEVOICE
    result = x.new_empty((ways, N, weights[-2].shape[0]))
    if N == 0:
        return result
    head = Head(modulation[set], weights, scales, N)
    h = x.new_empty((ways, N, width))
    elsewhere = x.is_cuda and x.device.index != torch.cuda.current_device()
    with torch.cuda.device(x.device) if elsewhere else nullcontext():
        head.linear(0, x, h[0])
        h[1:] = h[0]
        h = h.view(-1, width)
        y = torch.empty_like(h)
        for block in range(depth):
            u = x.new_empty((len(h), weights[4 * block + 4].shape[1]))
            column = 3 * block * width
            head.norm(h, y, column, rms, eps)
            head.linear(2 * block + 1, y, u, SWIGLU if rms else SILU)
            head.linear(2 * block + 2, u, h, RESIDUAL, column + 2 * width)
        head.norm(h, y, 3 * depth * width, rms, eps)
        head.linear(2 * depth + 1, y, result.view(len(h), -1))
    return result
