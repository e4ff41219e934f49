"""The C++ CPU kernels on AVX2 under ThreadSanitizer, their tiles shared among four threads.
`make sanitize` runs all instruction sets, and AddressSanitizer with UBSan too."""

import os
import shutil
import subprocess
import sys

import pytest

from ardiff_kernels import testing
from tests import ROOT

FOLDER = ROOT / "tests/kernels/cpp"


@pytest.mark.skipif(not shutil.which("make"), reason="make was not found")
@pytest.mark.skipif(not shutil.which("g++"), reason="g++ was not found")
def test_no_data_race_and_the_same_bits_on_four_threads(tmp_path):
    isa = "avx2" if "avx2" in testing.cpu_isas() else "scalar"
    options = [f"PY={sys.executable}", f"BUILD={tmp_path}", f"ISAS={isa}", "thread"]
    env = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
    run = ["make", "-j2", "-C", str(FOLDER), *options]
    done = subprocess.run(run, env=env, capture_output=True, text=True)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("this kernel's address space layout is not one that TSan knows")
    assert done.returncode == 0, done.stderr
    assert f"\nok: {isa}\n" in done.stdout, done.stdout
