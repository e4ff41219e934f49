"""Compile the Triton kernels of `kv_append` and `kv_attention` without a GPU and print, as JSON,
what they use.

Run as a script without TRITON_INTERPRET, like `triton_static.py`, from which the measures come.
"""

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import torch
import triton
from triton.compiler import ASTSource

from ardiff_kernels.ops._shared.triton import kv as _triton_kv
from ardiff_kernels.ops.kv_append import triton as append
from ardiff_kernels.ops.kv_attention import triton as attention
from tests.kernels.compiled.triton_static import TARGETS, amd_usage, nvidia_usage

APPEND, ATTENTION, MERGE = "kv_append", "kv_attention", "kv_attention_merge"
KERNELS = {
    APPEND: append.kv_append_kernel,
    ATTENTION: attention.kv_attention_kernel,
    MERGE: attention.kv_attention_merge_kernel,
}
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
INTEGERS = ("length", "count", "table", "position")
ROTARY = ("position", "norm", "cos", "sin")
SCALES = ("k_scale", "v_scale")
OPTIONAL = {"count", "table", *ROTARY, *SCALES}
F32, BF16, I8, F8 = torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn


class Case(NamedTuple):
    """A kernel with heads of D dimensions, new tokens and cache of these types, and what is given.

    ``heads`` is that of a tile of `kv_append`.
    """

    kernel: str
    name: str
    D: int
    new: torch.dtype = BF16
    cache: torch.dtype = BF16
    given: tuple[str, ...] = ()
    window: bool = False
    causal: bool = True
    heads: int = 8
    one_block: bool = True
    everywhere: bool = False


CASES = [
    Case(APPEND, "decode", 128, everywhere=True),
    Case(APPEND, "paged, rotary, norm", 128, given=("count", "table", *ROTARY)),
    Case(APPEND, "float32, many tokens, D = 72", 72, F32, F32, heads=512),
    Case(APPEND, "int8, paged, rotary, norm", 64, given=("table", *ROTARY, *SCALES), cache=I8),
    Case(APPEND, "float8, rotary", 256, F32, F8, ("cos", "sin", *SCALES), everywhere=True),
    Case(ATTENTION, "decode", 128, everywhere=True),
    Case(ATTENTION, "paged, rotary, norm", 128, given=("count", "table", *ROTARY), one_block=False),
    Case(ATTENTION, "paged, D = 80", 80, given=("table",)),
    Case(ATTENTION, "D = 64, window", 64, window=True, everywhere=True),
    Case(ATTENTION, "D = 256, rotary", 256, given=("cos", "sin")),
    Case(ATTENTION, "float32 queries", 128, F32, given=("table", "cos", "sin"), everywhere=True),
    Case(ATTENTION, "float32 queries, D = 256", 256, F32, given=("cos", "sin")),
    Case(ATTENTION, "float32", 128, F32, F32, everywhere=True),
    Case(ATTENTION, "float32, D = 256, rotary, window", 256, F32, F32, ("cos", "sin"), True),
    Case(ATTENTION, "int8", 128, cache=I8, given=("cos", "sin", *SCALES), everywhere=True),
    Case(ATTENTION, "float8, block-causal", 128, cache=F8, given=SCALES, causal=False,
         everywhere=True),
    Case(ATTENTION, "int8, float32 queries, D = 256", 256, F32, I8, ("table", *SCALES),
         one_block=False),
    Case(MERGE, "decode", 128, everywhere=True),
    Case(MERGE, "D = 256, paged, window", 256, given=("count", "table", "position"), window=True),
]  # fmt: skip


def constants_of(case: Case) -> tuple[dict, dict[str, int]]:
    """The compile-time arguments and launch options that a launch would choose."""
    columns = _triton_kv.head_columns(case.D)
    kind = {I8: _triton_kv.INT8, F8: _triton_kv.FLOAT8}.get(case.cache, _triton_kv.FLOAT)
    shape = dict(D=case.D, DP=columns)
    if case.kernel == APPEND:
        rows = append.tile_rows(case.heads, columns)
        return dict(**shape, KIND=kind, BR=rows, K_ALIGN=8, V_ALIGN=8), append.launch_options(
            rows, columns
        )
    flags = dict(**shape, CAUSAL=case.causal, WINDOWED=case.window)
    if case.kernel == MERGE:
        return dict(**flags, **attention.merge_tile(64, columns)), {"num_warps": 1}
    q_parts, p_parts = attention.parts(case.new, case.cache, "cos" in case.given)
    tile, options = attention.key_tile(columns, case.cache)
    flags |= dict(KIND=kind, Q_PARTS=q_parts, P_PARTS=p_parts)
    return dict(**flags, ONE_BLOCK=case.one_block, ALIGN=8, **tile), options


def source(case: Case) -> tuple[ASTSource, dict[str, int]]:
    """The kernel specialised as a launch with these tensors would specialise it."""
    kernel = KERNELS[case.kernel]
    constexprs, options = constants_of(case)
    types = {"k_cache": case.cache, "v_cache": case.cache, "q": case.new, "out": case.new}
    types |= dict.fromkeys(("k", "v"), case.new if case.kernel == APPEND else case.cache)
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        stem = name.removesuffix("_ptr")
        if name in constexprs or (name.endswith("_ptr") and stem in OPTIONAL - {*case.given}):
            signature[name] = "constexpr"
            constants[(index,)] = constexprs.get(name)
        elif name.endswith("_ptr"):
            element = TYPES.get(types.get(stem, F32), "i8")
            signature[name] = "*" + ("i32" if stem in INTEGERS else element)
            attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if name in ("eps", "scale") else "i32"
    return ASTSource(kernel, signature, constants, attributes), options


def compile_case(index: int, target: str) -> dict[str, int | str]:
    case = CASES[index]
    src, options = source(case)
    compiled = triton.compile(src, target=TARGETS[target], options=options)
    cubin = compiled.asm.get("cubin")
    usage = nvidia_usage(cubin) if cubin else amd_usage(compiled.asm["amdgcn"])
    row = {"op": case.kernel, "case": case.name, "target": target, **options}
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
