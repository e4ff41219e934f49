"""The build: what the library needs and exports, clear failures."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ardiff_kernels.dispatch import load
from tests import ROOT

needs_library = pytest.mark.skipif(not load.CPU.loaded, reason="the C++ CPU kernels are not built")


def symbols(*options: str) -> list[str]:
    command = ["nm", "-D", *options, str(load.CPU.path)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line.split()[-1].split("@")[0] for line in listing.splitlines()]


@needs_library
def test_exports_only_plain_functions_of_its_own():
    ours = [name for name in symbols("--defined-only") if not name.startswith("_ZNSt")]
    ours = [name for name in ours if "torch" in name.lower() or "ardiff" in name]
    assert {"ardiff_cpu_isa", "ardiff_set_cpu_isa"} <= set(ours)
    assert all(name.startswith("ardiff_") for name in ours)


@needs_library
def test_needs_only_the_stable_abi():
    """No C++ symbol of torch: one binary then serves torch 2.10 and later."""
    mangled = [name for name in symbols("--undefined-only") if name.startswith("_Z")]
    assert not [name for name in mangled if re.search(r"at\d|c10|5torch", name)]
    assert any(name.startswith("aoti_torch_") for name in symbols("--undefined-only"))


@pytest.fixture(scope="module")
def build_tools() -> list[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cmake, ninja = shutil.which("cmake", path=path), shutil.which("ninja", path=path)
    if not cmake or not ninja or not shutil.which("c++"):
        pytest.skip("cmake, ninja and a C++ compiler are needed")
    return [cmake, ninja]


def build_ext(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "setup.py", "-q", "build_ext"]
    folders = ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    return subprocess.run(
        [*command, *folders],
        cwd=ROOT,
        env={**os.environ, "ARDIFF_REQUIRE_BUILD": "", **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("required", [False, True])
def test_a_missing_compiler_is_one_sentence(tmp_path, required, monkeypatch):
    """On stderr, in the note, and in the reason why the library is missing; no older library stays
    to be loaded."""
    folder = tmp_path / "lib" / "ardiff_kernels"
    folder.mkdir(parents=True)
    for name in ("_C.so", "_C_cuda.so", "_host.so"):
        (folder / name).touch()
    flag = {"ARDIFF_REQUIRE_BUILD": "1"} if required else {}
    done = build_ext(tmp_path, CXX="/nonexistent/c++", **flag)
    sentence = "the C++ kernels were not built: no C++ compiler was found (install g++ or set CXX)"
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == int(required)
    assert (folder / "_build_failure.txt").read_text().splitlines() == [sentence]
    assert not list(folder.glob("*.so"))
    monkeypatch.setattr(load, "_FOLDER", folder)
    for name, what in (("_C", "the C++ CPU kernels"), ("_C_cuda", "the CUDA kernels")):
        library = load._load(name, what)
        assert not library.loaded and library.reason.endswith(f"; the last build says: {sentence}")


def test_the_reason_names_the_failure_of_its_own_library(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "_FOLDER", tmp_path)
    missing = f"the CUDA kernels are not built (_C_cuda.so is missing from {tmp_path.name}/)"
    assert load._load("_C_cuda", "the CUDA kernels").reason == missing
    sentences = [
        f"{what} not built: why" for what in ("the host module was", "the CUDA kernels were")
    ]
    (tmp_path / "_build_failure.txt").write_text("\n".join(sentences) + "\n")
    reason = load._load("_C_cuda", "the CUDA kernels").reason
    assert reason == f"{missing}; the last build says: {sentences[1]}"
    assert "last build" not in load._load("_C", "the C++ CPU kernels").reason


def test_a_missing_nvcc_and_a_broken_compiler_are_said(tmp_path, build_tools):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    done = build_ext(tmp_path, ARDIFF_BUILD_CUDA="1", CUDA_HOME="/nonexistent", CXX=str(compiler))
    assert "ARDIFF_BUILD_CUDA=1 but nvcc was not found (set CUDA_HOME or PATH)" in done.stderr
    assert "the C++ kernels were not built: CMake's configuration failed" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 0
