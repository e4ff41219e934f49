"""The C++ CPU kernels on AVX2 under ThreadSanitizer, their tiles shared among four threads.
`make sanitize` runs all instruction sets, and AddressSanitizer with UBSan too."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ardiff_kernels import testing
from tests import ROOT
from tests._support import build_cache

FOLDER = ROOT / "tests/kernels/cpp"


@pytest.mark.skipif(not shutil.which("make"), reason="make was not found")
@pytest.mark.skipif(not shutil.which("g++"), reason="g++ was not found")
def test_no_data_race_and_the_same_bits_on_four_threads():
    isa = "avx2" if "avx2" in testing.cpu_isas() else "scalar"
    options = [f"PY={sys.executable}", f"ISAS={isa}"]

    def make(folder: Path) -> None:
        env = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
        target = [f"BUILD={folder}", f"{folder}/thread/main"]
        command = ["make", "-j2", "-C", str(FOLDER), *options, *target]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    files = [*FOLDER.iterdir(), *(ROOT / "csrc").rglob("*")]
    inputs = [path for path in files if path.is_file()]
    facts = [build_cache.compiler_version(os.environ.get("CXX") or "g++"), options]
    program = build_cache.cached("sanitizers", inputs, facts, make) / "thread/main"
    done = subprocess.run([str(program)], capture_output=True, text=True)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("this kernel's address space layout is not one that TSan knows")
    assert done.returncode == 0, done.stderr
    assert f"ok: {isa}" in done.stdout.splitlines(), done.stdout
