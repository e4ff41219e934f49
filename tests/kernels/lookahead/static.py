"""Compile the Triton kernels of `lookahead_draft` and `lookahead_verify` without a GPU and print,
as JSON, what they use.

Run as a script without TRITON_INTERPRET, like `triton_static.py`, from which the measures come.
"""

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import triton
from triton.compiler import ASTSource

from ardiff_kernels.ops._shared.triton import window
from ardiff_kernels.ops._shared.triton.launch import alignment
from ardiff_kernels.ops.lookahead_draft.triton import lookahead_draft_kernel
from ardiff_kernels.ops.lookahead_verify.triton import EQUAL, LAW, NEAR, lookahead_verify_kernel
from tests.kernels.compiled.triton_static import TARGETS, amd_usage, nvidia_usage

DRAFT, VERIFY = "lookahead_draft", "lookahead_verify"
KERNELS = {DRAFT: (lookahead_draft_kernel, 512), VERIFY: (lookahead_verify_kernel, 512)}
INTEGERS = ("row", "count", "draw", "op", "known_row", "known_count", "row_new", "accepted")
TYPES = {**dict.fromkeys(INTEGERS, "i32"), **dict.fromkeys(("key", "stream"), "i64")}
KNOWN = ("known_x", "known_0", "gain", "known_row", "known_count")
VELOCITY = ("v", "velocities", "v_new", "op")
OPTIONAL = {*KNOWN, *VELOCITY, "noise", "scale", "x0_clamp", "tolerance"}
EVERYTHING = (*KNOWN, "noise", "scale", "x0_clamp")


class Case(NamedTuple):
    """A kernel at a `d`, with the optional arguments `given` and the outputs' type."""

    op: str
    name: str
    d: int
    given: tuple[str, ...] = KNOWN
    rule: int = LAW.value
    second: bool = False
    out: str = "fp32"
    everywhere: bool = True


CASES = [
    Case(DRAFT, "large", 12288),
    Case(DRAFT, "small, every option, second memory", 16, EVERYTHING, second=True),
    Case(DRAFT, "middle, velocity", 256, (*KNOWN, *VELOCITY), everywhere=False),
    Case(DRAFT, "small, odd d", 15, (), everywhere=False),
    Case(VERIFY, "large, bf16 outputs", 12288, out="bf16"),
    Case(VERIFY, "large, near, second memory", 12288, (*KNOWN, "tolerance"), NEAR.value, True),
    Case(VERIFY, "large, velocity", 12288, (*KNOWN, *VELOCITY, "scale")),
    Case(VERIFY, "small", 16, everywhere=False),
    Case(VERIFY, "small, every option, second memory", 16, EVERYTHING, second=True, out="fp16"),
    Case(VERIFY, "middle, equal bits, velocity", 256, (*KNOWN, *VELOCITY), EQUAL.value),
    Case(VERIFY, "small, odd d", 15, (), everywhere=False),
]


def source(case: Case, lanes: int) -> tuple[ASTSource, dict[str, int]]:
    """The kernel specialised as a launch with these tensors would specialise it."""
    kernel, most = KERNELS[case.op]
    window._LANES = lanes
    cols = window.tile_width(case.d, most, kernel)
    constexprs = {"BD": cols, "ALIGN": alignment(case.d, [case.d]), "SECOND": case.second}
    constexprs |= {"KINETIC": "op" in case.given, "RULE": case.rule, "ONE_TILE": case.d <= cols}
    constexprs |= dict.fromkeys(("DRAW_SHARED", "SCALE_SHARED"), False)
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        stem = name.removesuffix("_ptr").removesuffix("_stride")
        if name in constexprs or (
            stem in OPTIONAL - {*case.given} and not name.endswith("_stride")
        ):
            signature[name] = "constexpr"
            constants[(index,)] = constexprs.get(name)
        elif name.endswith("_ptr"):
            signature[name] = "*" + (case.out if stem == "outs" else TYPES.get(stem, "fp32"))
            attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if stem in OPTIONAL and not name.endswith("_stride") else "i32"
            if name == "d" and case.d % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes), {"num_warps": window.warps(cols)}


def compile_case(index: int, target: str) -> dict[str, int | str]:
    case = CASES[index]
    src, options = source(case, TARGETS[target].warp_size)
    compiled = triton.compile(src, target=TARGETS[target], options=options)
    cubin = compiled.asm.get("cubin")
    usage = nvidia_usage(cubin) if cubin else amd_usage(compiled.asm["amdgcn"])
    row = {"op": case.op, "case": case.name, "target": target, **options}
    return {**row, "shared_bytes": compiled.metadata.shared, **usage}


def main() -> None:
    """All cases on sm_80 and sm_90, those marked `everywhere` on gfx942 too."""
    jobs = [
        (index, target)
        for target in TARGETS
        for index, case in enumerate(CASES)
        if case.everywhere or target != "gfx942"
    ]
    with ProcessPoolExecutor(2) as pool:
        json.dump(list(pool.map(compile_case, *zip(*jobs, strict=True))), sys.stdout)


if __name__ == "__main__":
    main()
