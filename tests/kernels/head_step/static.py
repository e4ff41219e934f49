"""Compile the Triton kernels of `head_step` without a GPU and print, as JSON, what they use.

Run as a script without TRITON_INTERPRET, like `triton_static.py`, from which the measures come. The
cases are the launches of published heads: MAR-B, L and H and NextStep-1 differ in numbers that are
no constants of a kernel.
"""

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import torch
import triton
from triton.compiler import ASTSource

from ardiff_kernels.ops.head_step import triton as host
from ardiff_kernels.ops.head_step import triton_kernels as kernels
from ardiff_kernels.ops.head_step.triton_kernels import (
    LAYER,
    NONE,
    PLAIN,
    RESIDUAL,
    RMS,
    SILU,
    SWIGLU,
)
from tests.kernels.compiled.triton_static import TARGETS, amd_usage, nvidia_usage

FEW, MANY, NORM = "head_step_few", "head_step_many", "head_step_norm"
KERNELS = {FEW: kernels.few_rows, MANY: kernels.many_rows, NORM: kernels.norm_rows}
F32, BF16, I8 = torch.float32, torch.bfloat16, torch.int8
TYPES = {F32: "fp32", BF16: "bf16", I8: "i8"}
NEWEST, EVERYWHERE = ("sm_90",), tuple(TARGETS)


class Case(NamedTuple):
    """A launch: rows, the matrix, its type, what comes before and behind the product."""

    kernel: str
    name: str
    rows: int
    shape: tuple[int, int]
    matrix: torch.dtype = BF16
    epilogue: int = PLAIN
    norm: int = NONE
    after: int = NONE
    copies: int = 1
    invariant: bool = False
    targets: tuple[str, ...] = NEWEST


MAR, VIBEVOICE = (1024, 1024), (4608, 1536)
CASES = [
    Case(FEW, "mar-b", 16, MAR, epilogue=SILU, norm=LAYER, targets=EVERYWHERE),
    Case(FEW, "mar-b, gate", 16, MAR, epilogue=RESIDUAL, after=LAYER, targets=EVERYWHERE),
    Case(FEW, "vibevoice-1.5b", 16, VIBEVOICE, epilogue=SWIGLU, norm=RMS),
    Case(FEW, "layer norm, gated", 16, VIBEVOICE, epilogue=SWIGLU, norm=LAYER, targets=EVERYWHERE),
    Case(FEW, "rms norm, plain", 16, MAR, epilogue=SILU, norm=RMS, targets=EVERYWHERE),
    Case(FEW, "rms norm, plain, gate", 16, MAR, epilogue=RESIDUAL, after=RMS),
    Case(FEW, "int8", 16, MAR, I8, SILU, LAYER, targets=EVERYWHERE),
    Case(FEW, "odd width", 16, (37, 37), BF16, RESIDUAL, after=LAYER),
    Case(FEW, "input, two conditions", 8, (1024, 16), F32, after=LAYER, copies=2),
    Case(FEW, "float32, final", 16, (16, 1024), F32, norm=LAYER, targets=EVERYWHERE),
    Case(MANY, "mar-b", 1024, MAR, epilogue=SILU, targets=EVERYWHERE),
    Case(MANY, "mar-b, gate", 4096, MAR, epilogue=RESIDUAL),
    Case(MANY, "mar-b, 32 rows", 32, MAR, epilogue=SILU),
    Case(MANY, "mar-b, gate, invariant", 1024, MAR, epilogue=RESIDUAL, invariant=True),
    Case(MANY, "vibevoice-1.5b", 1024, VIBEVOICE, epilogue=SWIGLU),
    Case(MANY, "int8", 1024, MAR, I8, SILU),
    Case(MANY, "float32", 1024, MAR, F32, SILU),
    Case(NORM, "mar-b", 1024, MAR, norm=LAYER, targets=EVERYWHERE),
    Case(NORM, "rms norm", 1024, MAR, norm=RMS),
]


def types_of(case: Case) -> dict[str, str | None]:
    """Types of the tensors, None for those that are not given."""
    act = TYPES[host.activation(case.matrix)]
    hidden = "fp32" if case.epilogue in (PLAIN, RESIDUAL) else act
    narrow = case.matrix != F32
    return {
        "h_ptr": "fp32",
        "x_ptr": "fp32" if case.norm else act,
        "y_ptr": act if case.kernel == NORM else hidden,
        "m_ptr": "bf16" if narrow else "fp32",
        "w_ptr": TYPES[case.matrix],
        "scale_ptr": "fp32" if case.matrix == I8 else None,
        "bias_ptr": None if case.epilogue == SWIGLU else "fp32",
    }


def constants_of(case: Case, target: str) -> tuple[dict, dict[str, int]]:
    """The compile-time arguments and launch options that a launch would choose."""
    hip, (outs, columns) = target == "gfx942", case.shape
    shared = {"SHARED": False}
    if case.kernel == NORM:
        width = {"BW": triton.next_power_of_2(columns), "BR": 1}
        return shared | width | {"NORM": case.norm}, {"num_warps": 4}
    shared |= dict(EPILOGUE=case.epilogue, COPIES=case.copies, PARTS=host.parts(case.matrix))
    if case.kernel == MANY:
        gated = case.epilogue == SWIGLU
        tile = host.many_tile(case.rows, outs, case.matrix, gated, case.invariant, hip)
        return shared | tile.constants, tile.options
    tile = host.few_tile(case.matrix, case.norm != NONE, hip)
    tiles = triton.next_power_of_2(triton.cdiv(columns, tile.outs))
    shared |= dict(NORM=case.norm, AFTER=case.after, BT=tiles, BEFORE=tile.outs, S=host.SLICES)
    return shared | tile.constants, tile.options


def source(case: Case, target: str) -> tuple[ASTSource, dict[str, int]]:
    """The kernel specialised as a launch with these tensors would specialise it."""
    kernel, types = KERNELS[case.kernel], types_of(case)
    constexprs, options = constants_of(case, target)
    aligned = all(n % 16 == 0 for n in case.shape)
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constexprs or types.get(name, "") is None:
            signature[name] = "constexpr"
            constants[(index,)] = constexprs.get(name)
        elif name.endswith("_ptr"):
            signature[name] = "*" + types.get(name, "fp32")
            attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if name == "eps" else "i32"
            if aligned and name not in ("rows", "patches", "eps"):
                attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes), options


def compile_case(index: int, target: str) -> dict[str, int | str]:
    case = CASES[index]
    src, options = source(case, target)
    compiled = triton.compile(src, target=TARGETS[target], options=options)
    cubin = compiled.asm.get("cubin")
    usage = nvidia_usage(cubin) if cubin else amd_usage(compiled.asm["amdgcn"])
    row = {"op": case.kernel, "case": case.name, "target": target, **options}
    return {**row, "shared_bytes": compiled.metadata.shared, **usage}


def main() -> None:
    jobs = [
        (index, target)
        for target in TARGETS
        for index, case in enumerate(CASES)
        if target in case.targets
    ]
    with ProcessPoolExecutor(2) as pool:
        json.dump(list(pool.map(compile_case, *zip(*jobs, strict=True))), sys.stdout)


if __name__ == "__main__":
    main()
