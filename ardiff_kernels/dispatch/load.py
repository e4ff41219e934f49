"""Load the compiled libraries; one that fails is one clear sentence, and the rest still works."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import torch

_FOLDER = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Library:
    """A compiled library: `reason` is empty when it is loaded, else says why it is not."""

    name: str
    reason: str

    @property
    def loaded(self) -> bool:
        return not self.reason

    @property
    def path(self) -> Path:
        return _FOLDER / f"{self.name}.so"

    def count_forcing(self, contexts: int) -> None:
        """Tell the library of a loaded backend that `contexts` more force another than it."""
        ctypes.CDLL(str(self.path)).ardiff_count_forcing(ctypes.c_int64(contexts))


def _build_failure(what: str) -> str:
    """What setup.py noted about libraries it could not build: its sentence about `what`, else about
    the C++ kernels, without which it builds no others; empty where there is none."""
    note = _FOLDER / "_build_failure.txt"
    lines = note.read_text().splitlines() if note.exists() else []
    for about in (what, "the C++ kernels"):
        found = [line for line in lines if line.startswith(f"{about} were not built")]
        if found:
            return f"; the last build says: {found[0]}"
    return ""


def _load(name: str, what: str) -> Library:
    path = _FOLDER / f"{name}.so"
    if not path.exists():
        reason = f"{what} are not built ({path.name} is missing from {_FOLDER.name}/)"
        return Library(name, reason + _build_failure(what))
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        detail = str(error).splitlines()[0]
        return Library(
            name, f"{what} ({path.name}) do not load with torch {torch.__version__}: {detail}"
        )
    return Library(name, "")


CPU = _load("_C", "the C++ CPU kernels")
CUDA = _load("_C_cuda", "the CUDA kernels")
