"""Every example runs and prints what it found.

`demo.py` is `make demo`, whose figures tests/ar/test_sampler.py checks. C++ examples are built in
tests/packaging/test_cpp_embed.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

EXAMPLES = ROOT / "examples"
FOUND = sorted(path for path in EXAMPLES.glob("*.py") if path.name != "demo.py")
HANGS = 900.0  # seconds after which a script is ended, many times what any takes


def run(path: Path) -> str:
    """What the script prints."""
    done = subprocess.run(
        [sys.executable, str(path)],
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("path", FOUND, ids=[path.stem for path in FOUND])
def test_the_example_runs(path):
    assert run(path).strip()


def test_a_failing_example_fails(tmp_path):
    (tmp_path / "wrong.py").write_text("raise SystemExit('no')\n")
    with pytest.raises(AssertionError, match="no"):
        run(tmp_path / "wrong.py")
