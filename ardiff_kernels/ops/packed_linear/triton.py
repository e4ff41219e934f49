"""Launch of `packed_linear`'s Triton kernel: one for all rows, without a workspace."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from .._shared.triton.kv import on_device_of
from .checks import outputs
from .packing import PANEL, WORD
from .triton_kernels import ACTIVATIONS, packed_linear_kernel

_HIP = bool(torch.version.hip)


def parts(matrix: torch.dtype) -> int:
    """bfloat16 parts of an element of n(x); 0: it is multiplied in float32."""
    return {torch.bfloat16: 1, torch.int8: 3, torch.float32: 0}[matrix]


def tile(matrix: torch.dtype, gated: bool, hip: bool = _HIP) -> tuple[dict, dict]:
    """Constants and options of a launch: 16 rows of x, a panel, and eight slices of the columns,
    one for each warp. It is the same for any number of rows, whose bits it would change."""
    columns = 16 if matrix == torch.float32 else 32
    stages = 2 if hip else 3 if gated else 4
    constants = {"BR": 16, "PANELS": 1, "BW": columns // WORD[matrix], "S": 8}
    return constants, {"num_warps": 8, "num_stages": stages}


def interpreted() -> bool:
    """Then a program costs about 70 ms, so that programs are large; columns keep their order."""
    return not isinstance(packed_linear_kernel, triton.JITFunction)


def aligned(x: Tensor) -> Tensor:
    """x with rows that begin at multiples of 16 elements and bytes: with others the compiler would
    add the squares of a row in another order."""
    if x.data_ptr() % 16 == 0 and (len(x) == 1 or x.stride(0) % 16 == 0):
        return x
    wide = x.new_empty(len(x), 16 * triton.cdiv(x.shape[1], 16))
    return wide[:, : x.shape[1]].copy_(x)


def packed_linear(
    x: Tensor,
    weight: Tensor,
    rows: int,
    *,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    norm: Tensor | None = None,
    eps: float = 1e-6,
    activation: str = "none",
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    outs = outputs(rows, activation)
    result = x.new_empty((len(x), outs))
    if len(x) == 0:
        return result
    constants, options = tile(weight.dtype, activation == "swiglu")
    panels = triton.cdiv(outs, PANEL)
    if interpreted():
        constants["BR"] = max(16, triton.next_power_of_2(min(len(x), 64)))
        constants["PANELS"] = min(8, triton.next_power_of_2(panels))
    grid = triton.cdiv(panels, constants["PANELS"]), triton.cdiv(len(x), constants["BR"])
    shared = gate is None or len(gate) == 1
    whole = activation != "swiglu" or outs % PANEL == 0
    with on_device_of(x):
        x = aligned(x)
        packed_linear_kernel[grid](
            x, weight, scale, bias, norm, gate, residual, result,
            len(x), outs, x.shape[1], weight.shape[1], 0 if len(x) == 1 else x.stride(0),
            0 if shared else gate.stride(0), 0 if residual is None else residual.stride(0), eps,
            ACTIVATION=ACTIVATIONS[activation], PARTS=parts(weight.dtype),
            WORD=WORD[weight.dtype], WHOLE=whole, **constants, **options,
        )  # fmt: skip
    return result
