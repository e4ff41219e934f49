"""Static proof of the CUDA sources, without a GPU: nvcc compiles them for sm_80 and sm_90 without
spills, and the library loads and registers its kernels with a torch that has no CUDA."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests._support import build_cache
from tests.kernels.compiled import cuda_static, kernel_budget, sass
from tests.kernels.compiled.cuda_static import SOURCES, TORCH, Compiled

HEADS = ("head_lookahead", "head_loop", "head_step")
LOOKAHEADS = ("lookahead_draft", "lookahead_verify")
REGISTERED = """
import sys, torch
import ardiff_kernels
from ardiff_kernels.dispatch import library
torch.ops.load_library(sys.argv[1])
for op in library.CHECKS:
    name = f"ardiff::{op}"
    print(op, torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA"))
"""


@pytest.fixture(scope="module")
def nvcc() -> str:
    path = cuda_static.find_nvcc()
    if path is None:
        reason = "nvcc was not found: the CUDA sources are not compiled"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    if sass.find_cuobjdump() is None or shutil.which("c++filt") is None:
        pytest.skip("cuobjdump or c++filt was not found: the machine code is not read")
    return path


@pytest.fixture(scope="module")
def compiled(nvcc) -> dict[str, Compiled]:
    results = cuda_static.compile_all(nvcc)
    for result in results.values():
        print(kernel_budget.table(kernel_budget.budget_rows("cuda", result.rows)))
    return results


def test_every_op_has_a_source():
    steps = {"diffusion_step", "uld_step"}
    found = {s.stem for s in SOURCES}
    ops = {"philox_normal", "brownian_increment", "kv_append", "kv_attention"}
    ops |= {*steps, *LOOKAHEADS, "packed_linear"}
    assert {*ops, *(f"{step}_backward" for step in steps)} <= found


@pytest.mark.parametrize("source", [s.stem for s in SOURCES])
def test_no_spills(compiled, source):
    rows = compiled[source].rows
    assert {row["target"] for row in rows} == {"sm_80", "sm_90"}
    for row in rows:
        assert row["spill_bytes"] == 0 and row["stack"] == 0, row
        if "SplitBody" in row["case"] or "LinearBody" in row["case"]:
            continue
        # Three blocks of 256 threads on a multiprocessor; a head's kernel has one, by design, and
        # two are of a kernel that has all of a row at once: state, memories, guess, normals.
        limit = 255 if source in HEADS else 128 if source in LOOKAHEADS else 80
        assert row["registers"] <= limit, row


@pytest.mark.parametrize(("queries", "blocks"), [(4, 5), (8, 4)])
@pytest.mark.parametrize("cache", ["float", "BFloat16", "Int8", "Float8"])
def test_blocks_of_kv_attention_fit(compiled, cache, queries, blocks):
    """Blocks of 128 threads on a multiprocessor of an H200, with 227 KiB of shared memory, 1 KiB
    a block of it the system's. Keys and values are copied in 128 bits."""
    rows = [
        row
        for row in compiled["kv_attention"].rows
        if row["case"].startswith(f"phases<SplitBody<{cache}, {queries}>")
    ]
    assert {row["target"] for row in rows} == {"sm_80", "sm_90"}
    for row in rows:
        assert row["registers"] * 128 * blocks <= 65536, row
        assert (row["shared_bytes"] + 1024) * blocks <= 227 * 1024, row
        assert row["copy_128"] >= 4 and row["store_128"] >= 1, row


LINEAR = {
    "float, 1": (2, 0),
    "BFloat16, 1": (2, 8),
    "BFloat16, 4": (1, 32),
    "Int8, 1": (2, 16),
    "Int8, 2": (2, 32),
}


@pytest.mark.parametrize("kind", LINEAR)
def test_blocks_of_packed_linear_fit(compiled, kind):
    """Blocks of 256 threads on a multiprocessor of an A100, with 164 KiB of shared memory, 1 KiB a
    block of it the system's. All weights of a panel are on their way at once, in 64 bits (float32:
    128), and each is multiplied on the matrix units once for eight rows of x (int8: for each of two
    parts of an element)."""
    blocks, products = LINEAR[kind]
    case = f"phases<LinearBody<{kind}>"
    rows = [r for r in compiled["packed_linear"].rows if r["case"].startswith(case)]
    assert {row["target"] for row in rows} == {"sm_80", "sm_90"}
    for row in rows:
        assert row["registers"] * 256 * blocks <= 65536, row
        assert (row["shared_bytes"] + 1024) * blocks <= 164 * 1024, row
        assert row["matrix"] == products, row
        loads, least = (row["load_128"], 8) if "float" in kind else (row["load_64"], 16)
        assert loads >= 2 * (least // 2 if "Int8" in kind else least), row


@pytest.mark.parametrize(
    ("source", "body", "loads", "stores"),
    [
        ("uld_step", "UldBody<float", 8, 3),
        ("diffusion_step", "DiffusionBody<float, false, float", 6, 3),
        ("diffusion_step", "DiffusionBody<float, true, float", 7, 6),
        ("uld_step_backward", "UldBackwardBody<float", 3, 8),
        ("diffusion_step_backward", "DiffusionBackwardBody<float, float", 10, 11),
    ],
)
def test_float32_moves_in_128_bits(compiled, source, body, loads, stores):
    """All [B, d] tensors of the float32 kernels, beside the coefficients; no narrower store. The
    third memory has two stores in diffusion_step: the row's, and a copy where the row keeps it."""
    vector = [r for r in compiled[source].rows if r["case"].startswith(f"kernel<{body}, true>")]
    assert {row["target"] for row in vector} == {"sm_80", "sm_90"} and len(vector) == 2
    for row in vector:
        assert row["load_128"] >= loads and row["store_128"] == stores, row
        assert row["local_instructions"] == 0, row


@pytest.mark.parametrize("source", HEADS)
def test_weights_of_a_head_are_read_in_128_bits(compiled, source):
    """Four rows of a matrix at a time, by every kernel; one kernel for each type of weights."""
    bodies = ("grid_phases<HeadBody<", "grid_phases<HeadLookaheadBody<")
    rows = [row for row in compiled[source].rows if row["case"].startswith(bodies)]
    assert len(rows) == 6 and rows == compiled[source].rows
    for row in rows:
        assert row["load_128"] >= 4 and row["local_instructions"] == 0, row


def test_within_the_budget(nvcc, compiled):
    """A register, spill, byte or access more than kernel_budget.json allows names its row."""
    rows = [row for result in compiled.values() for row in result.rows]
    kernel_budget.check("cuda", rows, kernel_budget.cuda_compiler(nvcc))


def test_the_library_loads_and_registers_without_a_gpu(nvcc, compiled):
    objects = [result.object for result in compiled.values()]
    options = ["-shared", "-cudart=static", f"-L{TORCH / 'lib'}"]
    options += ["-Xlinker=--no-as-needed", "-ltorch", "-ltorch_cpu"]

    def make(folder: Path) -> None:
        target = ["-o", str(folder / "_C_cuda_test.so")]
        command = [nvcc, *options[:2], *map(str, objects), *target, *options[2:]]
        subprocess.run(command, check=True, capture_output=True)

    facts = [build_cache.compiler_version(nvcc), options]
    folder = build_cache.cached("cuda-library", objects, facts, make, root=build_cache.FOLDER)
    library = folder / "_C_cuda_test.so"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = [sys.executable, "-c", REGISTERED, str(library)]
    done = subprocess.run(run, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = dict(line.split() for line in done.stdout.splitlines())
    for op in ("philox_normal", "brownian_increment", "diffusion_step", "uld_step"):
        assert found[op] == found[f"{op}_"] == "True"
    assert found["head_step"] == found["head_loop"] == found["head_loop_"] == "True"
    assert found["head_lookahead"] == "True"
    assert found["diffusion_step_backward"] == found["uld_step_backward"] == "True"
    assert found["kv_append"] == found["kv_append_"] == found["kv_attention"] == "True"
    assert found["lookahead_draft"] == found["lookahead_verify"] == "True"
    assert found["packed_linear"] == "True"
