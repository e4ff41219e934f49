"""Compile the Triton kernel of `packed_linear` without a GPU and print, as JSON, what it uses.

Run as a script without TRITON_INTERPRET, like `triton_static.py`, from which the measures come. The
cases are linear layers of published transformers, which differ in numbers that are no constants of
the kernel.
"""

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import torch
import triton
from triton.compiler import ASTSource

from ardiff_kernels.ops.packed_linear import triton as host
from ardiff_kernels.ops.packed_linear.packing import PANEL, WORD
from ardiff_kernels.ops.packed_linear.triton_kernels import ACTIVATIONS, packed_linear_kernel
from tests.kernels.compiled.triton_static import TARGETS, amd_usage, nvidia_usage

F32, BF16, I8 = torch.float32, torch.bfloat16, torch.int8
TYPES = {F32: "fp32", BF16: "bf16", I8: "i8"}
NEWEST, EVERYWHERE = ("sm_90",), tuple(TARGETS)


class Case(NamedTuple):
    """A launch: the result's columns, x's, the types, and which optional tensors are given."""

    name: str
    shape: tuple[int, int]
    matrix: torch.dtype = BF16
    x: torch.dtype = BF16
    activation: str = "none"
    given: tuple[str, ...] = ()
    targets: tuple[str, ...] = NEWEST


QKV, DOWN = ("norm", "bias"), ("gate", "residual")
CASES = [
    Case("norm, qkv", (4096, 1024), given=QKV, targets=EVERYWHERE),
    Case("gate, residual", (1024, 4096), given=DOWN, targets=EVERYWHERE),
    Case("float32 x", (4096, 1024), x=F32, given=QKV, targets=EVERYWHERE),
    Case("norm, silu", (4096, 1024), activation="silu", given=QKV),
    Case("norm, swiglu", (4608, 1536), activation="swiglu", given=("norm",), targets=EVERYWHERE),
    Case("odd swiglu", (37, 61), activation="swiglu", given=("norm", "bias")),
    Case("odd", (37, 61), given=DOWN),
    Case("int8", (4096, 1024), I8, given=QKV, targets=EVERYWHERE),
    Case("int8, swiglu", (4608, 1536), I8, F32, "swiglu", ("norm",), EVERYWHERE),
    Case("float32", (4096, 1024), F32, F32, given=QKV, targets=EVERYWHERE),
    Case("float32, swiglu", (4608, 1536), F32, F32, "swiglu", ("norm", *DOWN)),
]


def source(case: Case, target: str) -> tuple[ASTSource, dict[str, int]]:
    """The kernel specialised as a launch with these tensors would specialise it."""
    gated = case.activation == "swiglu"
    constexprs, options = host.tile(case.matrix, gated, target == "gfx942")
    constexprs |= {"ACTIVATION": ACTIVATIONS[case.activation], "PARTS": host.parts(case.matrix)}
    constexprs |= {
        "WORD": WORD[case.matrix],
        "WHOLE": not gated or case.shape[0] % PANEL == 0,
    }
    x, scale = TYPES[case.x], ("scale",) if case.matrix == I8 else ()
    types = {"x": x, "residual": x, "y": x, "w": TYPES[case.matrix]}
    given = {"x", "w", "y", *case.given, *scale}
    numbers = dict(zip(("outs", "columns"), case.shape, strict=True)) | {"rows": 1, "words": 16}
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(packed_linear_kernel.arg_names):
        stem = name.removesuffix("_ptr")
        if name in constexprs or (name.endswith("_ptr") and stem not in given):
            signature[name] = "constexpr"
            constants[(index,)] = constexprs.get(name)
        elif name.endswith("_ptr"):
            signature[name] = "*" + types.get(stem, "fp32")
            attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if name == "eps" else "i32"
            if name != "eps" and numbers.get(name, 16) % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(packed_linear_kernel, signature, constants, attributes), options


def compile_case(index: int, target: str) -> dict[str, int | str]:
    case = CASES[index]
    src, options = source(case, target)
    compiled = triton.compile(src, target=TARGETS[target], options=options)
    cubin = compiled.asm.get("cubin")
    usage = nvidia_usage(cubin) if cubin else amd_usage(compiled.asm["amdgcn"])
    row = {"op": "packed_linear", "case": case.name, "target": target, **options}
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
