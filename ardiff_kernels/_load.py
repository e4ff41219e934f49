"""Load the compiled libraries; one that fails is one clear sentence, and the rest still works."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

_FOLDER = Path(__file__).resolve().parent


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


def _load(name: str, what: str) -> Library:
    path = _FOLDER / f"{name}.so"
    if not path.exists():
        return Library(name, f"{what} are not built ({path.name} is missing from {_FOLDER.name}/)")
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        detail = str(error).splitlines()[0]
        return Library(
            name, f"{what} ({path.name}) do not load with torch {torch.__version__}: {detail}"
        )
    return Library(name, "")


CPU = _load("_C", "the C++ CPU kernels")
CUDA = _load("_C_cuda", "the CUDA C++ kernels")
