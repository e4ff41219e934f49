"""Compile the CUDA sources for sm_80 and sm_90 without a GPU and measure the machine code."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests import ROOT
from tests._support import build_cache
from tests._support.build_cache import TORCH
from tests.kernels.compiled import sass

SOURCES = sorted((ROOT / "csrc/cuda").glob("*/*.cu"))
FLAGS = [
    *("-std=c++17", "-O3", "-fmad=false", "-Xptxas=-v", "-Xcompiler=-fPIC"),
    *("-DUSE_CUDA", "-DTORCH_STABLE_ONLY", "-DTORCH_TARGET_VERSION=0x020A000000000000"),
    *("-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=sm_90"),
]


class Compiled(NamedTuple):
    """`rows`: one per kernel and target, as `triton_static.py` prints them, with `stack` and
    `spill_bytes` from ptxas."""

    object: Path
    rows: list[dict[str, int | str]]


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")


def version(nvcc: str) -> str:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"release (\d+\.\d+)", text)[1]


def spills(report: str) -> dict[tuple[str, str], dict[str, int]]:
    """Bytes of stack and of spills of each target and kernel, from what `ptxas -v` says."""
    pattern = (
        r"Compiling entry function '(\w+)' for '(\w+)'.*?(\d+) bytes stack frame, "
        r"(\d+) bytes spill stores, (\d+) bytes spill loads"
    )
    return {
        (target, name): {"stack": int(stack), "spill_bytes": int(stores) + int(loads)}
        for name, target, stack, stores, loads in re.findall(pattern, report, re.DOTALL)
    }


def readable(names: list[str]) -> list[str]:
    """Demangled kernels without parameters and namespaces: kernel<UldBody<float, true>, UldArgs>.
    A mangled name holds a hash of the file's path, a readable one does not."""
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    if tool is None:
        raise RuntimeError("c++filt was not found; install binutils")
    run = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True)
    texts = [line.removeprefix("void ") for line in run.stdout.splitlines()]
    texts = [text.replace("(anonymous namespace)::", "").split("(")[0] for text in texts]
    return [re.sub(r"\b\w+::", "", text).replace("> >", ">>") for text in texts]


def compile_source(nvcc: str, source: Path) -> Compiled:
    """Compiled once per content of the source and all that it includes, measured once per object
    and content of what measures it."""

    def make(folder: Path) -> None:
        command = [nvcc, *FLAGS, "-isystem", str(TORCH / "include"), "-c", str(source)]
        command += ["-o", str(folder / f"{source.stem}.o")]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"nvcc could not compile {source.name}:\n{done.stderr}")
        (folder / "ptxas.txt").write_text(done.stdout + done.stderr)

    facts = [build_cache.compiler_version(nvcc), FLAGS]
    inputs = build_cache.with_included([source])
    compiled = build_cache.cached(f"cuda-{source.stem}", inputs, facts, make)
    target = compiled / f"{source.stem}.o"

    def measure(folder: Path) -> None:
        rows = measured(target, (compiled / "ptxas.txt").read_text())
        (folder / "rows.json").write_text(json.dumps(rows))

    tool = sass.find_cuobjdump()
    inputs = [*compiled.iterdir(), Path(sass.__file__), Path(__file__)]
    facts = tool and build_cache.compiler_version(tool)
    folder = build_cache.cached(f"sass-{source.stem}", inputs, facts, measure, root=compiled)
    return Compiled(target, json.loads((folder / "rows.json").read_text()))


def measured(target: Path, report: str) -> list[dict[str, int | str]]:
    """The rows of an object, and of what ptxas said of it."""
    spilled, used = spills(report), sass.usage(target)
    rows = []
    for (key, usage), name in zip(used.items(), readable([k[1] for k in used]), strict=True):
        row = {"op": target.stem, "case": name, "target": key[0], **spilled[key], **usage}
        row["shared_bytes"] = row.pop("static_shared_bytes")
        rows.append(row)
    return rows


def compile_all(nvcc: str) -> dict[str, Compiled]:
    """Every source of csrc/cuda, by its stem."""
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda source: compile_source(nvcc, source), SOURCES)
        return {source.stem: result for source, result in zip(SOURCES, results, strict=True)}
