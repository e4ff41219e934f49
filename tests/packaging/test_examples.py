"""Every example runs, prints what it found, and takes less than a minute of processor time: most of
it goes to imports, three times as much before Python has cached them.

`demo.py` is `make demo`, whose figures tests/ar/test_sampler.py checks. C++ examples are built in
tests/packaging/test_cpp_embed.py.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

EXAMPLES = ROOT / "examples"
FOUND = sorted(path for path in EXAMPLES.glob("*.py") if path.name != "demo.py")
SECONDS = 60.0


def child_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run(path: Path) -> tuple[str, float]:
    """What the script prints, and the processor seconds that it took."""
    before = child_seconds()
    done = subprocess.run(
        [sys.executable, str(path)],
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, child_seconds() - before


@pytest.mark.parametrize("path", FOUND, ids=[path.stem for path in FOUND])
def test_the_example_runs(path):
    printed, seconds = run(path)
    assert printed.strip()
    assert seconds < SECONDS


def test_a_failing_example_fails(tmp_path):
    (tmp_path / "wrong.py").write_text("raise SystemExit('no')\n")
    with pytest.raises(AssertionError, match="no"):
        run(tmp_path / "wrong.py")
