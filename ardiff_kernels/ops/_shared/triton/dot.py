"""Products on the matrix units whose float32 operands are sums of bfloat16 parts.

The units multiply bfloat16 exactly and add in float32: a float32 operand is the sum of up to three
bfloat16 parts, each multiplied by itself, and int8 codes are exact in bfloat16.
"""

import triton
import triton.language as tl

from .common import INTERPRETED, narrow, widen


@triton.jit
def operand(x, EXACT: tl.constexpr):
    """float32 values as an operand of the matrix units: themselves where EXACT, else rounded to
    bfloat16. The interpreter multiplies float32 alone."""
    if EXACT:
        return x
    elif INTERPRETED:
        return widen(narrow(x, tl.bfloat16))
    else:
        return x.to(tl.bfloat16)


@triton.jit
def int8_operand(x):
    """int8 codes as an operand."""
    # The code in the low bits of 2^23, instead of a slow conversion.
    word = (x.to(tl.int32) & 0xFF) ^ 0x4B000080
    return operand(word.to(tl.float32, bitcast=True) - 8388736.0, False)


@triton.jit
def product(a, b, acc):
    """acc + a b, each row of which depends on that row of `a` alone. The interpreter's library does
    not promise that; float64 makes it so but for rare roundings."""
    if INTERPRETED:
        exact = tl.dot(a.to(tl.float64), b.to(tl.float64), out_dtype=tl.float64)
        return (acc.to(tl.float64) + exact).to(tl.float32)
    else:
        return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def multiply(a, b, acc, PARTS: tl.constexpr):
    """acc + a b for float32 `a`: in PARTS bfloat16 parts, or as it is where PARTS is 0."""
    part = operand(a, PARTS == 0)
    acc = product(part, b, acc)
    if PARTS > 1:
        a -= part.to(tl.float32)
        part = operand(a, False)
        acc = product(part, b, acc)
    if PARTS > 2:
        acc = product(operand(a - part.to(tl.float32), False), b, acc)
    return acc


@triton.jit
def multiply_apart(a, b, acc, low, PARTS: tl.constexpr):
    """As `multiply`. Of several parts all but the first are added to `low`, and the first to `acc`
    outside the matrix units, which round their sums toward zero (Ootomo and Yokota 2022)."""
    part = operand(a, PARTS == 0)
    if PARTS > 1:
        own = product(part, b, tl.zeros_like(acc))
        acc = tl.fma(own, tl.full(acc.shape, 1.0, tl.float32), acc)  # a sum would be the units' own
        low = multiply(a - part.to(tl.float32), b, low, PARTS - 1)
    else:
        acc = product(part, b, acc)
    return acc, low
