"""Invalid calls of `packed_linear` and their messages, the same on every backend."""

from __future__ import annotations

import torch

from ardiff_kernels.ops.packed_linear.packing import packed_shape

F64, F16, BF16, I8 = torch.float64, torch.float16, torch.bfloat16, torch.int8


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(*shape, dtype=dtype)


def weight(rows=6, columns=5, dtype=torch.float32):
    return zeros(*packed_shape(rows, columns, dtype), dtype=dtype)


def call(**new):
    """A call of three rows, of 5 columns, by a matrix [6, 5], with some arguments replaced, where
    callable by what they return on the default device."""

    def invalid(op=torch.ops.ardiff.packed_linear.default):
        device = torch.get_default_device()
        given = {"x": zeros(3, 5), "weight": weight(), "rows": 6} | new
        given = {k: v() if callable(v) else v for k, v in given.items()}
        given = {
            k: v.to(device) if torch.is_tensor(v) and not v.is_meta else v for k, v in given.items()
        }
        args = [given.pop(name) for name in ("x", "weight", "rows")]
        return op(*args, **given)

    return invalid


def packed(text):
    return f"weight must be a contiguous {text}"


MADE = "as ardiff_kernels.pack_linear makes of a matrix [6, 5]"
CODES = {"weight": weight(dtype=I8), "scale": zeros(6)}
UNIT = "unit stride in its last dimension, got strides"
INVALID = {
    "dimensions": (call(x=zeros(5)), "x must be [N, K], got 1 dimensions"),
    "dtype": (call(x=zeros(3, 5, dtype=F16)), "x must be float32 or bfloat16, got float16"),
    "no element": (call(x=zeros(3, 0)), "x must have at least 1 element per row, got [3, 0]"),
    "activation": (call(activation="gelu"), "activation must be none, silu or swiglu, got gelu"),
    "no rows": (call(rows=0), "rows must lie in [1, 2147483632], got 0"),
    "too many rows": (call(rows=2**31), f"rows must lie in [1, 2147483632], got {2**31}"),
    "odd rows": (
        call(rows=7, activation="swiglu"),
        "rows must be even with swiglu, whose matrix holds gate above up, got 7",
    ),
    "eps": (call(eps=-0.5), "eps must be at least 0, got -0.5"),
    "eps that is none": (call(eps=float("nan")), "eps must be at least 0, got nan"),
    "weight dtype": (
        call(weight=weight().to(F16)),
        "weight must be float32, bfloat16 or int8, got float16",
    ),
    "matrix that is not packed": (
        call(weight=zeros(6, 5)),
        packed(f"float32 [1, 8, 16, 1], {MADE}, got float32 [6, 5]"),
    ),
    "panels": (
        call(weight=weight(rows=17)),
        packed(f"float32 [1, 8, 16, 1], {MADE}, got float32 [2, 8, 16, 1]"),
    ),
    "words": (
        call(weight=weight(columns=40, dtype=BF16)),
        packed(f"bfloat16 [1, 16, 16, 2], {MADE}, got bfloat16 [1, 32, 16, 2]"),
    ),
    "weight strides": (
        call(weight=lambda: zeros(1, 8, 16, 2)[..., :1]),
        packed(f"float32 [1, 8, 16, 1], {MADE}, got float32 [1, 8, 16, 1]"),
    ),
    "no scale": (call(weight=CODES["weight"]), "int8 weights need scale, a factor per row"),
    "needless scale": (
        call(scale=zeros(6)),
        "scale goes with int8 weights only, got float32 weights",
    ),
    "scale": (
        call(**CODES | {"scale": zeros(5)}),
        "scale must be a contiguous float32 [6], got float32 [5]",
    ),
    "bias": (
        call(bias=zeros(6, dtype=BF16)),
        "bias must be a contiguous float32 [6], got bfloat16 [6]",
    ),
    "norm": (call(norm=zeros(6)), "norm must be a contiguous float32 [5], got float32 [6]"),
    "norm strides": (
        call(norm=lambda: zeros(10)[::2]),
        "norm must be a contiguous float32 [5], got float32 [5]",
    ),
    "gate": (
        call(gate=zeros(2, 6)),
        "gate must be float32 [3, 6] or [1, 6], got float32 [2, 6]",
    ),
    "gate of one row": (
        call(x=zeros(1, 5), gate=zeros(2, 6)),
        "gate must be float32 [1, 6], got float32 [2, 6]",
    ),
    "gate of gate and up": (
        call(gate=zeros(3, 6), activation="swiglu"),
        "gate must be float32 [3, 3] or [1, 3], got float32 [3, 6]",
    ),
    "gate dtype": (
        call(gate=zeros(1, 6, dtype=BF16)),
        "gate must be float32 [3, 6] or [1, 6], got bfloat16 [1, 6]",
    ),
    "gate dimensions": (
        call(gate=zeros(6)),
        "gate must be float32 [3, 6] or [1, 6], got float32 [6]",
    ),
    "residual": (call(residual=zeros(1, 6)), "residual must be float32 [3, 6], got float32 [1, 6]"),
    "residual dtype": (
        call(residual=zeros(3, 6, dtype=BF16)),
        "residual must be float32 [3, 6], got bfloat16 [3, 6]",
    ),
    "strides": (call(x=lambda: zeros(5, 3).T), f"x must have {UNIT} [1, 3]"),
    "gate strides": (call(gate=lambda: zeros(6, 3).T), f"gate must have {UNIT} [1, 3]"),
    "residual strides": (
        call(residual=lambda: zeros(3, 12)[:, ::2]),
        f"residual must have {UNIT} [12, 2]",
    ),
}  # fmt: skip
