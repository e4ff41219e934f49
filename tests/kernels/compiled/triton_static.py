"""Compile the Triton kernels without a GPU and print, as JSON, what the compiled code uses.

Run as a script, in a process without TRITON_INTERPRET (under it `@triton.jit` gives interpreted
functions): `python -m tests.kernels.compiled.triton_static`. One row per kernel, case and target,
with registers, spills or local memory, shared memory, barriers, and the widths of global loads and
stores.
"""

import importlib
import json
import re
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ardiff_kernels.ops._shared.triton.launch import alignment, launch_shape
from tests.kernels.compiled import sass

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SMALL, MIDDLE, LARGE = 16, 64, 1024
PER_SAMPLE = dict(
    ROW_SHARED=False, DRAW_SHARED=False, GUIDANCE_SHARED=False, GUIDANCE2_SHARED=False,
    SCALE_SHARED=False,
)  # fmt: skip
SHARED = {name: True for name in PER_SAMPLE}
ONE_TIME = dict(START_SHARED=True, END_SHARED=True)
PLAIN = dict(LEARNED=False, MEMORIES=1)

GUIDED = dict(uncond="fp32", guidance="fp32")
THREE_WAY = dict(GUIDED, uncond2="fp32", guidance2="fp32", scale="fp32")
NARROW_GUIDED = dict(out="bf16", uncond="bf16", guidance="fp32", z_model="bf16")
NOISE = dict(noise="fp32", noise2="fp32")
EVERYTHING = dict(THREE_WAY, x0="fp32", x0_clamp="fp32", noise="fp32", z_model="bf16")
ULD, DIFFUSION, PHILOX = "uld_step", "diffusion_step", "philox_normal"
PATH = "brownian_increment"
ULD_BACKWARD, DIFFUSION_BACKWARD = "uld_step_backward", "diffusion_step_backward"
NEW_OUTPUTS = dict.fromkeys(("out", "uncond", "new_out", "new_uncond"), "bf16")
BF16_STATE = dict.fromkeys(("x", "memory", "x_new", "memory_new", "x0", "out"), "bf16")


class Case(NamedTuple):
    """A kernel with the optional tensors present and the dtypes that are not float32, at a `d`."""

    op: str
    name: str
    d: int
    given: dict[str, str]
    flags: dict[str, bool]
    everywhere: bool = True


CASES = [
    Case(PHILOX, "large", LARGE, {}, {}),
    Case(PHILOX, "small", SMALL, {}, {}, False),
    Case(PATH, "large", LARGE, {}, ONE_TIME),
    Case(PATH, "small", SMALL, {}, ONE_TIME, False),
    Case(PATH, "small, times per sample", SMALL, {}, dict.fromkeys(ONE_TIME, False), False),
    Case(ULD, "large", LARGE, {}, SHARED),
    Case(ULD, "large, bf16 output, guided, z_model", LARGE, NARROW_GUIDED, PER_SAMPLE),
    Case(ULD, "large, three-way", LARGE, THREE_WAY, PER_SAMPLE, False),
    Case(ULD, "middle, given noise", MIDDLE, NOISE, PER_SAMPLE, False),
    Case(ULD, "small, guided", SMALL, GUIDED, PER_SAMPLE),
    Case(ULD, "small, d a multiple of 4", SMALL + 4, {}, PER_SAMPLE, False),
    Case(ULD, "small, odd d", SMALL - 1, {}, PER_SAMPLE, False),
    Case(DIFFUSION, "large", LARGE, {}, {**SHARED, **PLAIN}, False),
    Case(DIFFUSION, "large, bf16 state", LARGE, BF16_STATE, {**SHARED, **PLAIN}),
    Case(DIFFUSION, "large, second memory", LARGE, {}, {**SHARED, **PLAIN, "MEMORIES": 2}, False),
    Case(DIFFUSION, "large, third memory", LARGE, {}, {**SHARED, **PLAIN, "MEMORIES": 3}, False),
    Case(
        DIFFUSION,
        "small, every option",
        SMALL,
        EVERYTHING,
        {**PER_SAMPLE, "LEARNED": True, "MEMORIES": 3},
    ),
    Case(
        DIFFUSION,
        "middle, bf16 output, given noise",
        MIDDLE,
        dict(out="bf16", noise="fp32", z_model="bf16"),
        {**PER_SAMPLE, **PLAIN},
        False,
    ),
    Case(ULD_BACKWARD, "large", LARGE, {}, SHARED),
    Case(ULD_BACKWARD, "small, every option", SMALL, dict(THREE_WAY, **NOISE), PER_SAMPLE, False),
    Case(DIFFUSION_BACKWARD, "large", LARGE, {}, {**SHARED, **PLAIN}),
    Case(
        DIFFUSION_BACKWARD,
        "small, bf16 outputs, learned range",
        SMALL,
        dict(NEW_OUTPUTS, guidance="fp32", x0_clamp="fp32", new_noise="fp32"),
        {**PER_SAMPLE, "LEARNED": True, "MEMORIES": 3},
        False,
    ),
]

_INTEGERS = {"row": "i32", "draw": "i32", "key": "i64", "stream": "i64"}
_OPTIONAL = {
    "uncond", "uncond2", "noise", "noise2", "guidance", "guidance2", "scale", "z_model", "x0",
    "x0_clamp", "new_uncond", "new_uncond2", "new_noise",
}  # fmt: skip


def source(case: Case, lanes: int) -> tuple[ASTSource, dict[str, int]]:
    """The kernel specialised as a launch with these tensors would specialise it."""
    module = importlib.import_module(f"ardiff_kernels.ops.{case.op}.triton")
    kernel = getattr(module, f"{case.op}_kernel")
    given = case.given
    shape = launch_shape(4096, case.d, narrow="bf16" in given.values(), lanes=lanes)
    tile = {"BR": shape.rows, "BD": shape.cols, "ALIGN": alignment(case.d, [case.d])}
    constexprs = {"IN_PLACE": "x0" not in given, **case.flags, **tile}
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        stem = name.removesuffix("_ptr").removesuffix("_stride")
        if name in constexprs:
            signature[name], constants[name] = "constexpr", constexprs[name]
        elif stem in _OPTIONAL and stem not in given and not name.endswith("_stride"):
            signature[name], constants[name] = "constexpr", None
        elif name.endswith("_ptr"):
            signature[name] = "*" + given.get(stem, _INTEGERS.get(stem, "fp32"))
            attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = given[name] if name in given else "i32"
            if (name == "d" or name.endswith("_stride")) and case.d % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    constants = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    return ASTSource(kernel, signature, constants, attributes), {"num_warps": shape.warps}


def nvidia_usage(cubin: bytes) -> dict[str, int]:
    """Registers, memory and instruction counts, from the compiled code itself."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        (usage,) = sass.usage(Path(file.name)).values()
    usage.pop("static_shared_bytes")  # the launch asks for dynamic shared memory
    return usage


def amd_usage(text: str) -> dict[str, int]:
    fields = {
        "registers": ".vgpr_count",
        "vgpr_spills": ".vgpr_spill_count",
        "sgpr_spills": ".sgpr_spill_count",
        "local_bytes": ".private_segment_fixed_size",
    }
    found = {
        name: int(re.search(rf"{re.escape(field)}:\s+(\d+)", text).group(1))
        for name, field in fields.items()
    }
    return found | {"matrix": len(re.findall(r"^\s+v_mfma", text, re.M))}


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
