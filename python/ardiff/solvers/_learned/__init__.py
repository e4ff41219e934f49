"""The tables of the solver ``learned``, a JSON file for each set of them, and how they are read.

A set holds levels and parameters of :class:`ardiff.tables.table_family.Family` for several numbers
of steps.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...tables.table_family import Family

Entry = dict[str, Any]  # s, a, p, q, each of N numbers, and last, the last row's rho


@functools.cache
def entries(name: str) -> dict[int, Entry]:
    """The entries of the shipped set `name` by their number of steps."""
    return read(Path(__file__).parent / f"{name}.json")


def read(path: Path) -> dict[int, Entry]:
    """The entries of a file."""
    return {len(entry["s"]): entry for entry in json.loads(path.read_text())}


def text(tables: dict[int, Entry]) -> str:
    """The content of a file of `tables`, an entry a line."""
    return "[\n" + ",\n".join(json.dumps(tables[n]) for n in sorted(tables)) + "\n]\n"


def entry_of(rows: np.ndarray) -> Entry:
    """What a set stores of rows `[N, 7]`, to six digits."""
    parameters = Family(len(rows), rows[0, 0]).parameters(rows).numpy()
    named = dict(zip(Family.ROWS, parameters, strict=True))
    stored = {"s": rows[:, 0], **{name: named[name] for name in ("a", "p", "q")}}
    stored = {name: [float(f"{v:.6g}") for v in values] for name, values in stored.items()}
    return {**stored, "last": float(f"{rows[-1, 1]:.6g}")}


def rows(entry: Entry, s: np.ndarray) -> np.ndarray:
    """Rows `[N, 7]` on the levels s, the entry's own or such as are near to them."""
    parameters = np.zeros((len(Family.ROWS), len(s)))
    parameters[0] = np.append(np.log(np.log(s[:-1] / s[1:])), entry["last"])
    for row, name in enumerate(("a", "p", "q"), start=1):
        parameters[row] = entry[name]
    return Family(len(s), s[0]).rows(torch.tensor(parameters)).numpy()
