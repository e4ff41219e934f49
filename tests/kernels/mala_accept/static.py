"""Compile the Triton kernel of `mala_accept` without a GPU and print, as JSON, what it uses.

Run as a script without TRITON_INTERPRET, like `triton_static.py`, from which the measures come.
"""

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import triton
from triton.compiler import ASTSource

from ardiff_kernels.ops._shared.triton.launch import alignment
from ardiff_kernels.ops.mala_accept.triton import mala_accept_kernel, tile_shape
from tests.kernels.compiled.triton_static import TARGETS, amd_usage, nvidia_usage

TYPES = {
    **dict.fromkeys(("row", "draw"), "i32"),
    **dict.fromkeys(("key", "stream"), "i64"),
    "accepted": "i1",
}
VELOCITY = ("v_x", "v_y", "v_new")
ENERGIES = ("energy_x", "energy_y", "energy_new")
OPTIONAL = {*VELOCITY, *ENERGIES, "mid", "radius"}
OUTPUTS = ("out_x", "out_y", "out_new", "mid")


class Case(NamedTuple):
    """The kernel at a `d`, with the optional tensors `given` and the outputs' type."""

    name: str
    d: int
    given: tuple[str, ...] = ()
    out: str = "fp32"
    in_place: bool = True
    everywhere: bool = True


CASES = [
    Case("large", 65536),
    Case("large, functional", 65536, in_place=False, everywhere=False),
    Case("middle, velocity, bf16 outputs", 256, VELOCITY, "bf16"),
    Case("middle, energies, ball", 64, (*ENERGIES, "radius"), everywhere=False),
    Case("small, Simpson, velocity", 16, (*VELOCITY, "mid"), "fp16", everywhere=False),
    Case("small, odd d", 15, (), everywhere=False),
]


def source(case: Case) -> tuple[ASTSource, dict[str, int]]:
    """The kernel specialised as a launch with these tensors would specialise it."""
    rows, cols = tile_shape(case.d)
    constexprs = {"IN_PLACE": case.in_place, "BR": rows, "BD": cols}
    constexprs |= {"ONE_TILE": case.d <= cols, "ALIGN": alignment(case.d, [case.d])}
    constexprs |= dict.fromkeys(("ROW_SHARED", "DRAW_SHARED", "RADIUS_SHARED"), False)
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(mala_accept_kernel.arg_names):
        stem = name.removesuffix("_ptr").removesuffix("_stride")
        if name in constexprs or (name.endswith("_ptr") and stem in OPTIONAL - {*case.given}):
            signature[name] = "constexpr"
            constants[(index,)] = constexprs.get(name)
        elif name.endswith("_ptr"):
            signature[name] = "*" + (case.out if stem in OUTPUTS else TYPES.get(stem, "fp32"))
            attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32"
            if (name == "d" or name.endswith("_stride")) and case.d % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    warps = max(1, rows * cols // 128)
    return ASTSource(mala_accept_kernel, signature, constants, attributes), {"num_warps": warps}


def compile_case(index: int, target: str) -> dict[str, int | str]:
    case = CASES[index]
    src, options = source(case)
    compiled = triton.compile(src, target=TARGETS[target], options=options)
    cubin = compiled.asm.get("cubin")
    usage = nvidia_usage(cubin) if cubin else amd_usage(compiled.asm["amdgcn"])
    row = {"op": "mala_accept", "case": case.name, "target": target, **options}
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
