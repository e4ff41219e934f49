"""What an installation holds: every module, the shipped model, and the command `ardiff`."""

from __future__ import annotations

import configparser
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

SOURCES = {"ardiff": ROOT / "python/ardiff", "ardiff_kernels": ROOT / "ardiff_kernels"}
BUILT = {".so", ".pyc"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder that a wheel is made of, without the C++ libraries, which another step builds."""
    folder = tmp_path_factory.mktemp("wheel")
    steps = ["egg_info", "--egg-base", str(folder), "build_py", "--build-lib", str(folder / "lib")]
    command = [sys.executable, "setup.py", "-q", *steps]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("package", SOURCES)
def test_every_file_of_a_package_is_installed(installed, package):
    """So a new package, or a new kind of file in one, cannot be left out."""

    def files(folder: Path) -> set[str]:
        paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in BUILT]
        return {str(path.relative_to(folder)) for path in paths}

    expected = files(SOURCES[package]) - {"_build_failure.txt"}
    assert files(installed / "lib" / package) == expected
    assert "__init__.py" in expected and len(expected) > 20


def test_the_shipped_model_is_installed(installed):
    folder = installed / "lib/ardiff/models/pretrained/sun-shadow"
    assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors"}


def test_the_command_is_installed(installed):
    (path,) = installed.glob("*.egg-info/entry_points.txt")
    found = configparser.ConfigParser()
    found.read(path)
    assert dict(found["console_scripts"]) == {"ardiff": "ardiff.commands._parser:main"}
    module, _, name = found["console_scripts"]["ardiff"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
