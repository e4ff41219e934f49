"""What tests compile, kept in build/test-cache by the content of all that goes into it, so that a
second run of the tests compiles only what has changed. ARDIFF_TEST_CACHE=0 compiles all anew."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from tests import ROOT

TORCH = Path(torch.__file__).parent
FOLDER = ROOT / "build" / "test-cache"
DAY = 86400.0
KEPT = 4  # builds of one name: those that were used last
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', re.MULTILINE)


def with_included(sources: Iterable[Path]) -> list[Path]:
    """C++ or CUDA sources, the files that they include in quotes on any condition, and theirs.

    Raises:
        FileNotFoundError: an include that is not beside the file that has it.
    """
    found: set[Path] = set()
    waiting = [path.resolve() for path in sources]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for name in _INCLUDE.findall(path.read_text()):
            included = (path.parent / name).resolve()
            if not included.is_file():
                raise FileNotFoundError(f"{path} includes {name}, which is not at {included}")
            waiting.append(included)
    return sorted(found)


def find_compiler() -> str | None:
    """The C++ compiler that tests use."""
    return os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")


def compiler_version(compiler: str) -> str:
    """All that the compiler says of itself, with torch's version, whose headers it reads."""
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    return f"{done.stdout} torch {torch.__version__}"


def host_library(
    compiler: str, name: str, source: Path, flags: list[str], root: Path = ROOT
) -> Path:
    """A library of torch ops, from a CUDA source that the C++ compiler takes as C++.

    Args:
        name: of the library, unlike all others'.
        root: of the sources; paths relative to it are part of what the library is known by.
    """

    def make(folder: Path) -> None:
        command = [compiler, *flags, "-shared", "-isystem", str(TORCH / "include")]
        command += ["-x", "c++", str(source), "-x", "none", "-o", str(folder / f"{name}.so")]
        command += [f"-L{TORCH / 'lib'}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    facts = [compiler_version(compiler), flags]
    return cached(name, with_included([source]), facts, make, root=root) / f"{name}.so"


def digest(inputs: Iterable[Path], facts: object, root: Path = ROOT) -> str:
    """Of the contents of files, their paths from `root`, and what else decides the result."""
    made = hashlib.sha256(json.dumps(facts, default=str).encode())
    for path in sorted(set(inputs)):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        made.update(f"\n{os.path.relpath(path.resolve(), root.resolve())} {content}".encode())
    return made.hexdigest()[:24]


def cached(
    name: str,
    inputs: Iterable[Path],
    facts: object,
    make: Callable[[Path], None],
    *,
    root: Path = ROOT,
    folder: Path | None = None,
) -> Path:
    """A folder that `make` has filled, now or in an earlier run from the same inputs.

    A build is made beside its place and moved there whole, so that workers that make the same one
    at the same time, or one that is killed, leave no half.

    Args:
        name: of the build, unlike all others'.
        inputs: the files whose content goes into it.
        facts: what else does: compiler versions, flags, the text of a command; anything of JSON.
        make: fills an empty folder; what it raises leaves nothing behind.
        root: of the inputs, as in :func:`digest`.
        folder: of the cache, build/test-cache.
    """
    if os.environ.get("ARDIFF_TEST_CACHE") == "0":
        own = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        atexit.register(shutil.rmtree, own, ignore_errors=True)
        make(own)
        return own
    folder = FOLDER if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"{name}-{digest(inputs, facts, root)}"
    if place.is_dir():
        os.utime(place)
        return place
    made = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder))
    try:
        make(made)
        try:
            made.rename(place)
        except OSError:
            if not place.is_dir():  # else another worker was faster
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    _remove_old(folder, name)
    return place


def _remove_old(folder: Path, name: str) -> None:
    """Builds that were not used for long, and what processes that were killed left a day ago."""
    halves = [
        path for path in folder.glob(f".{name}-*") if time.time() - path.stat().st_mtime > DAY
    ]
    for path in halves:
        shutil.rmtree(path, ignore_errors=True)
    builds = [path for path in folder.glob(f"{name}-*") if len(path.name) == len(name) + 25]
    for path in sorted(builds, key=lambda path: path.stat().st_mtime)[:-KEPT]:
        shutil.rmtree(path, ignore_errors=True)
