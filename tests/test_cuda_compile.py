"""Static proof of the CUDA sources, without a GPU: nvcc compiles them for sm_80 and sm_90 without
spills, and the library loads and registers its kernels with a torch that has no CUDA."""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
TORCH = Path(torch.__file__).parent
SOURCES = sorted((ROOT / "csrc/cuda").glob("*.cu"))
FLAGS = [
    *("-std=c++17", "-O3", "-fmad=false", "-Xptxas=-v", "-Xcompiler=-fPIC"),
    *("-DUSE_CUDA", "-DTORCH_STABLE_ONLY", "-DTORCH_TARGET_VERSION=0x020A000000000000"),
    *("-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=sm_90"),
]
REGISTERED = """
import sys, torch
import ardiff_kernels
from ardiff_kernels import _library
torch.ops.load_library(sys.argv[1])
for op in _library.CHECKS:
    name = f"ardiff::{op}"
    print(op, torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA"))
"""


@pytest.fixture(scope="module")
def nvcc() -> str:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    path = shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")
    if path is None:
        reason = "nvcc was not found: the CUDA sources are not compiled"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    return path


def usage(report: str) -> list[dict[str, int | str]]:
    """Target, registers and spilled bytes of each kernel, from what `ptxas -v` says."""
    pattern = (
        r"Compiling entry function '(\w+)' for '(\w+)'.*?(\d+) bytes stack frame, "
        r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers"
    )
    rows = []
    for name, target, stack, stores, loads, registers in re.findall(pattern, report, re.DOTALL):
        kernel = re.search(r"([A-Z][a-z]+Body\w*?Lb[01])EE", name)
        row = {"kernel": kernel[1] if kernel else name, "target": target}
        rows.append({**row, "registers": int(registers), "stack": int(stack)})
        rows[-1]["spills"] = int(stores) + int(loads)
    return rows


@pytest.fixture(scope="module")
def compiled(nvcc, tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("cuda")

    def compile_one(source: Path) -> dict:
        target = folder / f"{source.stem}.o"
        command = [nvcc, *FLAGS, "-isystem", str(TORCH / "include")]
        done = subprocess.run(
            [*command, "-c", str(source), "-o", str(target)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return {"object": target, "usage": usage(done.stdout + done.stderr)}

    with ThreadPoolExecutor(2) as pool:
        results = dict(zip((s.stem for s in SOURCES), pool.map(compile_one, SOURCES), strict=True))
    for name, result in results.items():
        for row in result["usage"]:
            print(name, *(f"{key}={value}" for key, value in row.items()))
    return results


def test_every_op_has_a_source():
    assert {"philox_normal", "diffusion_step", "uld_step"} <= {s.stem for s in SOURCES}


@pytest.mark.parametrize("source", [s.stem for s in SOURCES])
def test_no_spills(compiled, source):
    rows = compiled[source]["usage"]
    assert {row["target"] for row in rows} == {"sm_80", "sm_90"}
    for row in rows:
        assert row["spills"] == 0 and row["stack"] == 0, row
        assert row["registers"] <= 80, row  # three blocks of 256 threads on a multiprocessor


@pytest.mark.parametrize(
    ("source", "loads", "stores"), [("uld_step", 8, 3), ("diffusion_step", 6, 3)]
)
def test_float32_moves_in_128_bits(compiled, source, loads, stores):
    """All [B, d] tensors of the float32 kernels, beside the coefficients; no narrower store."""
    triton = pytest.importorskip("triton")
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    run = [str(tool), "-sass", str(compiled[source]["object"])]
    text = subprocess.run(run, check=True, capture_output=True, text=True).stdout
    kernels = re.findall(r"Function : (\S+)\n(.*?)(?=Function :|\Z)", text, re.DOTALL)
    plain = r"(?:UldBodyIf|DiffusionBodyIfLb0Ef)Lb1E"
    vector = [code for name, code in kernels if re.search(plain, name)]
    assert len(vector) == 2  # sm_80 and sm_90
    for code in vector:
        assert len(re.findall(r"\bLDG\.E(?:\.\w+)*\.128\b", code)) >= loads
        assert len(re.findall(r"\bSTG\.E(?:\.\w+)*\.128\b", code)) == stores
        assert not re.search(r"\b(?:LDL|STL)\b", code)


def test_the_library_loads_and_registers_without_a_gpu(nvcc, compiled, tmp_path):
    library = tmp_path / "_C_cuda_test.so"
    objects = [str(result["object"]) for result in compiled.values()]
    link = [nvcc, "-shared", "-cudart=static", *objects, "-o", str(library)]
    link += [f"-L{TORCH / 'lib'}", "-Xlinker=--no-as-needed", "-ltorch", "-ltorch_cpu"]
    subprocess.run(link, check=True, capture_output=True)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = [sys.executable, "-c", REGISTERED, str(library)]
    done = subprocess.run(run, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = dict(line.split() for line in done.stdout.splitlines())
    for op in ("philox_normal", "diffusion_step", "uld_step"):
        assert found[op] == found[f"{op}_"] == "True"
