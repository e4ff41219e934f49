"""Random calls of `packed_linear`, their float64 oracle, and the error that they may have."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ardiff_kernels import pack_linear
from ardiff_kernels.ops.packed_linear.packing import unpack
from ardiff_kernels.testing import Call

F32, BF16, I8 = torch.float32, torch.bfloat16, torch.int8
DTYPES = (F32, BF16, I8)
ACTIVATIONS = ("none", "silu", "swiglu")
INT16_STEPS = 32512  # of the largest magnitude of a row that is rounded to integers


@dataclass
class LinearCall(Call):
    """A call of `packed_linear`."""

    def rows(self, index: Tensor | list[int] | slice) -> LinearCall:
        """The call of some of the rows of x, or of some again."""
        gate, residual = self.options["gate"], self.options["residual"]
        own = gate is not None and len(gate) == len(self.args["x"])
        return self.changed(
            x=self.args["x"][index],
            gate=gate[index] if own else gate,
            residual=None if residual is None else residual[index],
        )

    def normalized(self) -> Tensor:
        """n(x) in float64."""
        x, norm = self.args["x"].double(), self.options["norm"]
        if norm is None:
            return x
        factor = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.options["eps"])
        return x * factor * norm.double()

    def eager(self) -> Tensor:
        """The layer as PyTorch does it in the weights' dtype, int8 weights as float32."""
        weight, rows, o = self.args["weight"], self.args["rows"], self.options
        x = self.args["x"]
        dtype = BF16 if weight.dtype == BF16 else F32
        matrix = unpack(weight, rows, x.shape[1]).float()
        if o["scale"] is not None:
            matrix = matrix * o["scale"][:, None]
        bias, norm = (None if v is None else v.to(dtype) for v in (o["bias"], o["norm"]))
        h = x.to(dtype)
        if norm is not None:
            h = F.rms_norm(h, norm.shape, norm, o["eps"])
        y = F.linear(h, matrix.to(dtype), bias)
        if o["activation"] == "silu":
            y = F.silu(y)
        elif o["activation"] == "swiglu":
            first, second = y.chunk(2, -1)
            y = F.silu(first) * second
        if o["gate"] is not None:
            y = y * o["gate"].to(dtype)
        if o["residual"] is not None:
            y = y + o["residual"].to(dtype)
        return y.to(x.dtype)

    def rounded(self) -> Tensor:
        """The oracle with n(x) rounded to integers of 16 bits with one scale per row."""
        x = self.normalized()
        step = x.abs().amax(-1, keepdim=True) / INT16_STEPS
        x = torch.where(step > 0, (x / step).round() * step, x)
        return self.changed(x=x, norm=None).oracle()


def error(found: Tensor, exact: Tensor) -> float:
    return (found.double() - exact).norm().item()


def allowed(call: LinearCall, exact: Tensor) -> float:
    """Twice the RMS error of PyTorch, with int8 weights twice that of rounding n(x) to integers
    too, and a float32 rounding of the result."""
    bound = 2 * error(call.eager(), exact) + 2.0**-23 * exact.norm().item()
    if call.args["weight"].dtype == I8:
        bound += 2 * error(call.rounded(), exact)
    return bound


def excess(found: Tensor, call: LinearCall) -> float:
    """The RMS error over the allowed one."""
    exact = call.oracle()
    assert found.shape == exact.shape and found.dtype == call.args["x"].dtype
    assert found.is_contiguous() and found.isfinite().all()
    return error(found, exact) / allowed(call, exact) if found.numel() else 0.0


def linear_call(
    N: int,
    columns: int = 100,
    rows: int = 48,
    dtype: torch.dtype = F32,
    x: torch.dtype = F32,
    activation: str = "none",
    norm: bool = False,
    bias: bool = False,
    gate: str = "",
    residual: bool = False,
    seed: int = 0,
) -> LinearCall:
    """`gate` is of each row ("own") or one for all ("shared"). Between the rows of x, gate and
    residual lies NaN."""
    generator = torch.Generator("cpu").manual_seed(seed)

    def normal(*shape: int, kind: torch.dtype = F32, scale: float = 1.0) -> Tensor:
        values = torch.randn(*shape, generator=generator, device="cpu", dtype=F32) * scale
        return values.to(torch.get_default_device(), kind)

    def apart(*shape: int, kind: torch.dtype = F32) -> Tensor:
        wide = torch.full((shape[0], shape[1] + 3), math.nan, dtype=kind)
        wide[:, : shape[1]] = normal(*shape, kind=kind)
        return wide[:, : shape[1]]

    outs = rows // 2 if activation == "swiglu" else rows
    packed = pack_linear(normal(rows, columns, scale=columns**-0.5), dtype)
    args = {"x": apart(N, columns, kind=x), "weight": packed.weight, "rows": rows}
    options = {
        "scale": packed.scale,
        "bias": normal(rows, scale=0.3) if bias else None,
        "norm": 1 + normal(columns, scale=0.3) if norm else None,
        "eps": 1e-5,
        "activation": activation,
        "gate": apart(1 if gate == "shared" else N, outs) if gate else None,
        "residual": apart(N, outs, kind=x) if residual else None,
    }
    return LinearCall("packed_linear", args, options)


EVERYTHING = dict(norm=True, bias=True, gate="own", residual=True)
# Few programs each, for the interpreter.
SMALL = {
    "plain": dict(N=3),
    "bfloat16": dict(N=3, dtype=BF16, x=BF16, norm=True),
    "int8": dict(N=3, dtype=I8, bias=True),
    "silu": dict(N=2, dtype=BF16, activation="silu", bias=True),
    "swiglu": dict(N=3, rows=64, dtype=BF16, activation="swiglu", **EVERYTHING),
    "swiglu across panels": dict(N=3, rows=74, dtype=I8, activation="swiglu", **EVERYTHING),
    "gate for all": dict(N=3, dtype=BF16, x=BF16, gate="shared", residual=True),
    "odd": dict(N=5, columns=37, rows=19, norm=True, residual=True),
}
CASES = {
    "empty": dict(N=0),
    "empty swiglu": dict(N=0, activation="swiglu", **EVERYTHING),
    "one by one": dict(N=3, columns=1, rows=1, norm=True),
    "one column": dict(N=3, columns=1, rows=33, dtype=BF16),
    "one row": dict(N=9, columns=70, rows=1, dtype=I8),
    "one panel and a row": dict(N=9, columns=31, rows=17, dtype=BF16, **EVERYTHING),
    "all of it": dict(N=6, columns=203, rows=90, **EVERYTHING),
    "all of it bfloat16": dict(N=6, columns=203, rows=90, dtype=BF16, x=BF16, **EVERYTHING),
    "all of it int8": dict(N=6, columns=203, rows=90, dtype=I8, x=BF16, **EVERYTHING),
    "float32 weights of bfloat16": dict(N=6, columns=96, x=BF16, **EVERYTHING),
    "long rows": dict(N=4, columns=1100, rows=40, **EVERYTHING),
    "long rows bfloat16": dict(N=9, columns=2100, rows=40, dtype=BF16, **EVERYTHING),
    "long rows int8": dict(N=17, columns=2304, rows=40, dtype=I8, **EVERYTHING),
    "long rows swiglu": dict(
        N=3, columns=1536, rows=96, dtype=BF16, activation="swiglu", norm=True
    ),
    "wide": dict(N=2, columns=256, rows=1024, dtype=BF16, norm=True),
    **{
        f"{N} {activation} {str(dtype)[6:]}": dict(
            N=N, rows=64, dtype=dtype, x=BF16 if N % 2 else F32, activation=activation,
            norm=N != 8, bias=N != 1, gate="shared" if N > 20 else "own", residual=N != 16,
        )
        for N in (1, 8, 16, 33, 64)
        for activation in ACTIVATIONS
        for dtype in DTYPES
    },
    **SMALL,
}  # fmt: skip
# Calls whose rows are taken apart.
COMPANY = {
    "float32": dict(N=11, columns=75, rows=40, **EVERYTHING),
    "bfloat16": dict(N=40, columns=160, rows=40, dtype=BF16, x=BF16, **EVERYTHING),
    "int8": dict(N=21, columns=75, rows=40, dtype=I8, **EVERYTHING),
    "swiglu": dict(N=18, rows=64, dtype=BF16, activation="swiglu", **EVERYTHING),
    "long rows": dict(N=10, columns=1100, rows=33, dtype=BF16, **EVERYTHING),
    "long rows float32": dict(N=10, columns=1100, rows=33, **EVERYTHING),
}
