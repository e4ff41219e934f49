"""Device code of `head_step`: products with a norm before them and an epilogue behind them.

`few_rows` serves up to 16 rows, where the time is that of reading the matrix: a program takes a few
of its rows over all columns, which its warps share out; their sums are added in one fixed order.
The norm is made while x is read, from sums over the columns that the launch before has left beside
its output. `many_rows` is a product in tiles, behind `norm_rows`.

bfloat16 matrices take activations rounded to bfloat16. The codes of int8 ones are exact in
bfloat16, and activations are sums of three bfloat16 parts, each multiplied by itself; the scales of
the outputs follow in the epilogue. float32 matrices are multiplied in float32. Sums are float32.
"""

import triton
import triton.language as tl

from .._shared.triton.common import INTERPRETED, narrow, widen
from .._shared.triton.dot import int8_operand, multiply_apart

PLAIN, SILU, SWIGLU, RESIDUAL = range(4)
NONE, LAYER, RMS = range(3)
_SILU, _SWIGLU, _RESIDUAL = tl.constexpr(SILU), tl.constexpr(SWIGLU), tl.constexpr(RESIDUAL)
_NONE, _LAYER = tl.constexpr(NONE), tl.constexpr(LAYER)


@triton.jit(do_not_specialize=["rows", "patches"])
def norm_rows(
    h_ptr, m_ptr, y_ptr, rows, patches, width, m_stride, column, eps,
    SHARED: tl.constexpr, NORM: tl.constexpr, BR: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """y = n m + s, n the norm of a row of h; s lies at `column` of the row's modulation, m behind
    it."""
    row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)[:, None]
    lane = tl.arange(0, BW)[None, :]
    mask = (row < rows) & (lane < width)
    h = tl.load(h_ptr + row * width + lane, mask=mask, other=0.0)
    if NORM == _LAYER:
        mean = tl.sum(h, 1, keep_dims=True) / width
        h = tl.where(mask, h - mean, 0.0)
    n = h / tl.sqrt_rn(tl.sum(h * h, 1, keep_dims=True) / width + eps)
    at = row // patches if SHARED else row
    m_row = m_ptr + at * m_stride + column + lane
    shift = widen(tl.load(m_row, mask=mask, other=0.0))
    scale = widen(tl.load(m_row + width, mask=mask, other=0.0))
    y = narrow(n * scale + shift, y_ptr.dtype.element_ty)
    tl.store(y_ptr + row * width + lane, y, mask=mask)


@triton.jit
def values(x):
    """Elements of a matrix or of its input as operands; the interpreter multiplies float32."""
    if x.dtype == tl.int8:
        return int8_operand(x)
    elif INTERPRETED:
        return widen(x)
    else:
        return x


@triton.jit
def read_norm(
    stat_ptr, row, rows, width, tiles, eps,
    NORM: tl.constexpr, BT: tl.constexpr, BEFORE: tl.constexpr,
):  # fmt: skip
    """Mean, and one over the root of the variance, of rows of h `[len(row)]`, from the sum and the
    sum of squares about the mean of each BEFORE columns (Chan, Golub and LeVeque 1979)."""
    tile = tl.arange(0, BT)[None, :]
    at = stat_ptr + row[:, None] * tiles + tile
    mask = (row < rows)[:, None] & (tile < tiles)
    squares = tl.load(at + rows.to(tl.int64) * tiles, mask=mask, other=0.0)
    mean = tl.zeros_like(row).to(tl.float32)
    if NORM == _LAYER:
        count = tl.minimum(width - tile * BEFORE, BEFORE).to(tl.float32)
        sums = tl.load(at, mask=mask, other=0.0)
        mean = tl.sum(sums, 1) / width
        apart = tl.where(mask, sums / count - mean[:, None], 0.0)
        squares += count * apart * apart
    return mean, tl.div_rn(1.0, tl.sqrt_rn(tl.sum(squares, 1) / width + eps))


@triton.jit
def of_outs(ptr, out, outs, default: tl.constexpr):
    """A factor or summand of each output `[1, len(out)]`, or what stands for none."""
    if ptr is None:
        return tl.full([1, out.shape[0]], default, tl.float32)
    else:
        return tl.load(ptr + out, mask=out < outs, other=0.0)[None, :]


@triton.jit
def load_residual(
    h_ptr, m_ptr, row, out, rows, patches, outs, m_stride, gate_column, SHARED: tl.constexpr
):  # fmt: skip
    """The tile of h to which a block's output, times the gate, is added."""
    mask = (row[:, None] < rows) & (out[None, :] < outs)
    modulation = row // patches if SHARED else row
    gate_at = m_ptr + modulation[:, None] * m_stride + gate_column + out[None, :]
    gate = widen(tl.load(gate_at, mask=mask, other=0.0))
    return tl.load(h_ptr + row[:, None] * outs + out[None, :], mask=mask, other=0.0), gate


@triton.jit
def silu(x):
    return x / (1.0 + tl.exp(-x))


@triton.jit
def store_copies(ptr, value, row, out, rows, outs, COPIES: tl.constexpr):
    mask = (row[:, None] < rows) & (out[None, :] < outs)
    at = ptr + row[:, None] * outs + out[None, :]
    value = narrow(value, ptr.dtype.element_ty)
    for way in tl.static_range(COPIES):
        tl.store(at + way * rows.to(tl.int64) * outs, value, mask=mask)


@triton.jit
def store_stat(
    stat_ptr, h, row, tile, rows, outs,
    NORM: tl.constexpr, COPIES: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """What `read_norm` needs of a tile of h."""
    tiles = tl.cdiv(outs, BO)
    lane = tl.arange(0, BO)[None, :]
    inside = lane < outs - tile * BO
    h = tl.where(inside, h, 0.0)
    sums = tl.sum(h, 1)
    if NORM == _LAYER:
        mean = sums / tl.minimum(outs - tile * BO, BO).to(tl.float32)
        h = tl.where(inside, h - mean[:, None], 0.0)
    squares = tl.sum(h * h, 1)
    at = stat_ptr + row * tiles + tile
    all_rows = rows.to(tl.int64) * COPIES
    for way in tl.static_range(COPIES):
        if NORM == _LAYER:
            tl.store(at + way * rows.to(tl.int64) * tiles, sums, mask=row < rows)
        tl.store(at + (all_rows + way * rows) * tiles, squares, mask=row < rows)


@triton.jit
def transposed(w):
    """Slices of a matrix `[S, BO, BK]` as `[S, BK, BO]`."""
    return tl.permute(values(w), 0, 2, 1)


@triton.jit(do_not_specialize=["rows", "patches"])
def few_rows(
    x_ptr, x_stat_ptr, m_ptr, w_ptr, scale_ptr, bias_ptr, y_ptr, stat_ptr,
    rows, patches, outs, columns, x_stride, m_stride, norm_column, gate_column, x_tiles, eps,
    NORM: tl.constexpr, EPILOGUE: tl.constexpr, AFTER: tl.constexpr, SHARED: tl.constexpr,
    COPIES: tl.constexpr, PARTS: tl.constexpr, BT: tl.constexpr, BEFORE: tl.constexpr,
    BR: tl.constexpr, BO: tl.constexpr, BK: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """A product over S interleaved slices of the columns."""
    tile = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64) * BR + tl.arange(0, BR)
    out = tile * BO + tl.arange(0, BO)
    if NORM != _NONE:
        mean, factor = read_norm(x_stat_ptr, row, rows, columns, x_tiles, eps, NORM, BT, BEFORE)
        mean, factor = mean[None, :, None], factor[None, :, None]
        modulation = row // patches if SHARED else row
        m_at = m_ptr + modulation[None, :, None] * m_stride + norm_column
    x_at = x_ptr + row[None, :, None] * x_stride
    w_at = w_ptr + out[None, :, None].to(tl.int64) * columns
    up_at = w_ptr + (out + outs)[None, :, None].to(tl.int64) * columns
    x_real, w_real = row[None, :, None] < rows, out[None, :, None] < outs
    lane = tl.arange(0, S)[:, None, None] * BK + tl.arange(0, BK)[None, None, :]
    scale = of_outs(scale_ptr, out, outs, 1.0)
    bias = of_outs(bias_ptr, out, outs, 0.0)
    if EPILOGUE == _SWIGLU:
        up_scale = of_outs(scale_ptr, out + outs, 2 * outs, 1.0)
        up_bias = of_outs(bias_ptr, out + outs, 2 * outs, 0.0)
    if EPILOGUE == _RESIDUAL:
        h, gate = load_residual(
            y_ptr, m_ptr, row, out, rows, patches, outs, m_stride, gate_column, SHARED
        )
    sum = tl.zeros([S, BR, BO], tl.float32)
    low = tl.zeros([S, BR, BO], tl.float32)
    up = tl.zeros([S, BR, BO], tl.float32)
    low_up = tl.zeros([S, BR, BO], tl.float32)
    for first in range(0, columns, S * BK):
        k = first + lane
        inside = k < columns
        w = tl.load(w_at + k, mask=w_real & inside, other=0)
        x = values(tl.load(x_at + k, mask=x_real & inside, other=0.0))
        if NORM != _NONE:
            shift = widen(tl.load(m_at + k, mask=x_real & inside, other=0.0))
            stretch = widen(tl.load(m_at + columns + k, mask=x_real & inside, other=0.0))
            x = (x - mean) * factor * stretch + shift
        sum, low = multiply_apart(x, transposed(w), sum, low, PARTS)
        if EPILOGUE == _SWIGLU:
            w = tl.load(up_at + k, mask=w_real & inside, other=0)
            up, low_up = multiply_apart(x, transposed(w), up, low_up, PARTS)
    y = tl.sum(sum + low, 0) * scale + bias
    if EPILOGUE == _SILU:
        y = silu(y)
    if EPILOGUE == _SWIGLU:
        y = silu(y) * (tl.sum(up + low_up, 0) * up_scale + up_bias)
    if EPILOGUE == _RESIDUAL:
        y = h + gate * y
    store_copies(y_ptr, y, row, out, rows, outs, COPIES)
    if AFTER != _NONE:
        store_stat(stat_ptr, y, row, tile, rows, outs, AFTER, COPIES, BO)


@triton.jit(do_not_specialize=["rows", "patches"])
def many_rows(
    x_ptr, m_ptr, w_ptr, scale_ptr, bias_ptr, y_ptr,
    rows, patches, outs, columns, x_stride, m_stride, gate_column,
    EPILOGUE: tl.constexpr, SHARED: tl.constexpr, COPIES: tl.constexpr, PARTS: tl.constexpr,
    BR: tl.constexpr, BO: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A product in tiles of rows and outputs, for each of COPIES conditions the same."""
    tile = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64) * BR + tl.arange(0, BR)
    out = tile * BO + tl.arange(0, BO)
    x_at = x_ptr + row[:, None] * x_stride
    w_at = w_ptr + out[None, :].to(tl.int64) * columns
    up_at = w_ptr + (out + outs)[None, :].to(tl.int64) * columns
    lane = tl.arange(0, BK)
    sum = tl.zeros([BR, BO], tl.float32)
    low = tl.zeros([BR, BO], tl.float32)
    up = tl.zeros([BR, BO], tl.float32)
    low_up = tl.zeros([BR, BO], tl.float32)
    for first in range(0, columns, BK):
        k = first + lane
        x_real = (row[:, None] < rows) & (k[None, :] < columns)
        w_real = (out[None, :] < outs) & (k[:, None] < columns)
        x = values(tl.load(x_at + k[None, :], mask=x_real, other=0.0))
        w = values(tl.load(w_at + k[:, None], mask=w_real, other=0))
        sum, low = multiply_apart(x, w, sum, low, PARTS)
        if EPILOGUE == _SWIGLU:
            w = values(tl.load(up_at + k[:, None], mask=w_real, other=0))
            up, low_up = multiply_apart(x, w, up, low_up, PARTS)
    scale = of_outs(scale_ptr, out, outs, 1.0)
    bias = of_outs(bias_ptr, out, outs, 0.0)
    if EPILOGUE == _SWIGLU:
        up_scale = of_outs(scale_ptr, out + outs, 2 * outs, 1.0)
        up_bias = of_outs(bias_ptr, out + outs, 2 * outs, 0.0)
    if EPILOGUE == _RESIDUAL:
        h, gate = load_residual(
            y_ptr, m_ptr, row, out, rows, patches, outs, m_stride, gate_column, SHARED
        )
    y = (sum + low) * scale + bias
    if EPILOGUE == _SILU:
        y = silu(y)
    if EPILOGUE == _SWIGLU:
        y = silu(y) * ((up + low_up) * up_scale + up_bias)
    if EPILOGUE == _RESIDUAL:
        y = h + gate * y
    store_copies(y_ptr, y, row, out, rows, outs, COPIES)
