"""What tests compile, kept in build/test-cache by the content of all that goes into it, so that a
second run of the tests compiles only what has changed. ARDIFF_TEST_CACHE=0 compiles all anew."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from tests import ROOT

FOLDER = ROOT / "build" / "test-cache"
KEPT = 4  # builds of one name: those that were used last
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', re.MULTILINE)


def with_included(sources: Iterable[Path], folders: Iterable[Path] = ()) -> list[Path]:
    """C++ or CUDA sources and all files that they include in quotes, on any condition, and so on.

    Args:
        folders: where an include is looked for after the folder of the file that has it.

    Raises:
        FileNotFoundError: an include that is nowhere there.
    """
    found: set[Path] = set()
    waiting = [path.resolve() for path in sources]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for name in _INCLUDE.findall(path.read_text()):
            places = [folder / name for folder in (path.parent, *folders)]
            present = [place.resolve() for place in places if place.is_file()]
            if not present:
                raise FileNotFoundError(f"{path} includes {name}, which is not in {places}")
            waiting.append(present[0])
    return sorted(found)


def compiler_version(compiler: str) -> str:
    """All that the compiler says of itself, with torch's version, whose headers it reads."""
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    return f"{done.stdout} torch {torch.__version__}"


def digest(inputs: Iterable[Path], facts: object) -> str:
    """Of the contents of files, their paths, and what else decides the result."""
    made = hashlib.sha256(json.dumps(facts, default=str).encode())
    for path in sorted(set(inputs)):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        made.update(f"\n{os.path.relpath(path, ROOT)} {content}".encode())
    return made.hexdigest()[:24]


def cached(
    name: str,
    inputs: Iterable[Path],
    facts: object,
    make: Callable[[Path], None],
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
        folder: of the cache, build/test-cache.
    """
    folder = FOLDER if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"{name}-{digest(inputs, facts)}"
    fresh = os.environ.get("ARDIFF_TEST_CACHE") == "0"
    if place.is_dir() and not fresh:
        os.utime(place)
        return place
    made = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder))
    try:
        make(made)
        if fresh and place.is_dir():
            # Another process may have loaded libraries of it: their files live on while it does.
            place.rename(made.with_suffix(".old"))
            shutil.rmtree(made.with_suffix(".old"))
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
    builds = [path for path in folder.glob(f"{name}-*") if len(path.name) == len(name) + 25]
    for path in sorted(builds, key=lambda path: path.stat().st_mtime)[:-KEPT]:
        shutil.rmtree(path, ignore_errors=True)
