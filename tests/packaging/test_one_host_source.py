"""What the CPU and the CUDA kernels share stands once, in csrc/math or csrc/torch: long runs of
equal lines between csrc/cpu and csrc/cuda are counted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests import ROOT

RUN = 6  # lines; shorter runs are idiom: includes, the ends of a loop, a registration
BOUND = 60
SUFFIXES = {".h", ".cuh", ".cpp", ".cu", ".inc"}


def lines_of(text: str) -> list[str]:
    """Its lines without comments, blank lines and differences of white space."""
    bare = (re.sub(r"//.*", "", line) for line in text.splitlines())
    return [" ".join(line.split()) for line in bare if line.strip()]


def sources(folder: Path) -> dict[str, list[str]]:
    files = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES)
    return {str(path.relative_to(folder)): lines_of(path.read_text()) for path in files}


def runs(lines: list[str]) -> Iterator[tuple[int, tuple[str, ...]]]:
    for i in range(len(lines) - RUN + 1):
        yield i, tuple(lines[i : i + RUN])


def copied(ours: dict[str, list[str]], theirs: dict[str, list[str]]) -> dict[str, int]:
    """How many lines of each of our files lie in a run of RUN lines that is one of theirs too."""
    known = {run for lines in theirs.values() for _, run in runs(lines)}
    counts = {}
    for name, lines in ours.items():
        inside = {i + k for i, run in runs(lines) if run in known for k in range(RUN)}
        if inside:
            counts[name] = len(inside)
    return counts


def test_the_backends_hold_no_copies_of_each_other():
    counts = copied(sources(ROOT / "csrc/cpu"), sources(ROOT / "csrc/cuda"))
    assert sum(counts.values()) < BOUND, f"move what is equal to csrc/torch or csrc/math: {counts}"


def test_the_counter_finds_a_planted_copy():
    """In other lines, with comments and other white space, and no line beside it."""
    cpu = sources(ROOT / "csrc/cpu")
    cuda = sources(ROOT / "csrc/cuda")
    before = sum(copied(cpu, cuda).values())
    planted = [f"planted_{i}(a,  b);  // line {i}" for i in range(BOUND)]
    cpu["one.cpp"] = lines_of("\n".join(["first();", *planted, "last();"]))
    cuda["one.cu"] = lines_of("\n\n".join(["other();", *planted, "another();"]))
    assert sum(copied(cpu, cuda).values()) == before + BOUND
    short = lines_of("\n".join(planted[: RUN - 1]))
    assert not copied({"short.cpp": short}, cuda)
