"""Device code of `packed_linear`: a product over interleaved slices of the columns, one for each
warp, whose sums are added in one fixed order, and what surrounds it.

A panel is read as it lies, and turned into a matrix in shared memory. The factor of the norm, one
over the root of the mean square of a row, comes behind the product: the squares are summed while x
is read.

bfloat16 weights take n(x) rounded to bfloat16. The codes of int8 ones are exact in bfloat16, and
n(x) is a sum of three bfloat16 parts, each multiplied by itself. float32 is multiplied as it is.
Sums are float32.
"""

import triton
import triton.language as tl

from .._shared.triton.common import INTERPRETED, narrow, widen
from .._shared.triton.dot import int8_operand, multiply_apart
from .packing import PANEL as _PANEL

ACTIVATIONS = {"none": 0, "silu": 1, "swiglu": 2}
PANEL = tl.constexpr(_PANEL)
_NONE, _SWIGLU = tl.constexpr(0), tl.constexpr(2)


@triton.jit
def operand_of(w):
    """Weights as an operand; the interpreter multiplies float32."""
    if w.dtype == tl.int8:
        return int8_operand(w)
    elif INTERPRETED:
        return widen(w)
    else:
        return w


@triton.jit
def load_panels(
    w_ptr, first, word, words, rows,
    S: tl.constexpr, PANELS: tl.constexpr, BW: tl.constexpr, WORD: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """Rows [first, first + PANELS * 16) of the matrix from `word` on, in S slices of BW words:
    `[S, BW * WORD, PANELS * 16]`. Where WHOLE, `first` begins a panel."""
    size: tl.constexpr = BW * PANEL * WORD  # elements of a panel in a slice
    slice = tl.arange(0, S)[:, None]
    element = tl.arange(0, PANELS * size)[None, :]
    panel, within = element // size, element % size
    begin = word + slice * BW
    if WHOLE:
        at = (first // PANEL + panel).to(tl.int64) * words * (PANEL * WORD)
        at += begin * (PANEL * WORD) + within
        row = first + panel * PANEL
    else:
        row = first + panel * PANEL + within // WORD % PANEL
        at = (row // PANEL).to(tl.int64) * words + begin + within // (PANEL * WORD)
        at = (at * PANEL + row % PANEL) * WORD + within % WORD
    inside = (begin + within // (PANEL * WORD) < words) & (row < rows)
    w = tl.load(w_ptr + at, mask=inside, other=0)
    w = tl.reshape(w, [S, PANELS, BW, PANEL, WORD])
    w = tl.permute(w, 0, 2, 4, 1, 3)
    return operand_of(tl.reshape(w, [S, BW * WORD, PANELS * PANEL]))


@triton.jit
def of_outs(y, ptr, out, end, TIMES: tl.constexpr):
    """y times, or plus, what each output has, where it has it."""
    if ptr is not None:
        v = tl.load(ptr + out, mask=out < end, other=0.0)[None, :]
        y = y * v if TIMES else y + v
    return y


@triton.jit
def silu(x):
    return x / (1.0 + tl.exp(-x))


@triton.jit(do_not_specialize=["rows"])
def packed_linear_kernel(
    x_ptr, w_ptr, scale_ptr, bias_ptr, norm_ptr, gate_ptr, residual_ptr, y_ptr,
    rows, outs, columns, words, x_stride, gate_stride, residual_stride, eps,
    ACTIVATION: tl.constexpr, PARTS: tl.constexpr, WORD: tl.constexpr, WHOLE: tl.constexpr,
    BR: tl.constexpr, PANELS: tl.constexpr, BW: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    BK: tl.constexpr = BW * WORD
    BO: tl.constexpr = PANELS * PANEL
    GATED: tl.constexpr = ACTIVATION == _SWIGLU
    first = tl.program_id(0) * BO
    matrix_rows = 2 * outs if GATED else outs
    row = tl.program_id(1).to(tl.int64) * BR + tl.arange(0, BR)
    x_at = x_ptr + row[None, :, None] * x_stride
    lane = tl.arange(0, S)[:, None, None] * BK + tl.arange(0, BK)[None, None, :]
    sum = tl.zeros([S, BR, BO], tl.float32)
    low = tl.zeros([S, BR, BO], tl.float32)
    up = tl.zeros([S, BR, BO], tl.float32)
    low_up = tl.zeros([S, BR, BO], tl.float32)
    squares = tl.zeros([S, BR, BK], tl.float32)
    for word in range(0, words, S * BW):
        w = load_panels(w_ptr, first, word, words, matrix_rows, S, PANELS, BW, WORD, WHOLE)
        k = word * WORD + lane
        x = tl.load(x_at + k, mask=(row[None, :, None] < rows) & (k < columns), other=0.0)
        if PARTS != 1 or norm_ptr is not None or INTERPRETED:
            x = widen(x)
        if norm_ptr is not None:
            squares += x * x
            x *= tl.load(norm_ptr + k, mask=k < columns, other=0.0)
        sum, low = multiply_apart(x, w, sum, low, PARTS)
        if GATED:
            w = load_panels(
                w_ptr, first + outs, word, words, matrix_rows, S, PANELS, BW, WORD, WHOLE
            )
            up, low_up = multiply_apart(x, w, up, low_up, PARTS)
    out = first + tl.arange(0, BO)
    y = tl.sum(sum + low, 0)
    if norm_ptr is not None:
        mean = tl.sum(tl.sum(squares, 2), 0) / columns
        factor = tl.div_rn(1.0, tl.sqrt_rn(mean + eps))[:, None]
        y *= factor
    y = of_outs(of_outs(y, scale_ptr, out, outs, True), bias_ptr, out, outs, False)
    if ACTIVATION != _NONE:
        y = silu(y)
    if GATED:
        other = tl.sum(up + low_up, 0)
        if norm_ptr is not None:
            other *= factor
        other = of_outs(other, scale_ptr, out + outs, 2 * outs, True)
        y *= of_outs(other, bias_ptr, out + outs, 2 * outs, False)
    real = (row[:, None] < rows) & (out[None, :] < outs)
    if gate_ptr is not None:
        y *= tl.load(gate_ptr + row[:, None] * gate_stride + out[None, :], mask=real, other=0.0)
    if residual_ptr is not None:
        at = residual_ptr + row[:, None] * residual_stride + out[None, :]
        y += widen(tl.load(at, mask=real, other=0.0))
    tl.store(y_ptr + row[:, None] * outs + out[None, :], narrow(y, y_ptr.dtype.element_ty), real)
