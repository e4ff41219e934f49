"""The tables of the solver ``learned``, a JSON file for each set of them, and how they are read.

A set holds the parameters of :class:`ardiff.tables.table_family.Family` for several numbers of
steps. On other levels than its own, or at another number of steps, the parameters of the nearest
number are read at the log of the levels, a in proportion to h where that is the shorter step.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...tables.table_family import Family

Entry = dict[str, Any]  # s, a, p, q, r, each of N numbers, and last, the last row's rho


@functools.cache
def entries(name: str) -> dict[int, Entry]:
    """The entries of the set `name` by their number of steps."""
    text = (Path(__file__).parent / f"{name}.json").read_text()
    return {len(entry["s"]): entry for entry in json.loads(text)["tables"]}


def entry_of(rows: np.ndarray) -> Entry:
    """What a set stores of rows `[N, 7]`, to six digits."""
    parameters = Family(len(rows), rows[0, 0]).parameters(rows).numpy()
    named = dict(zip(Family.ROWS, parameters, strict=True))
    stored = {"s": rows[:, 0], **{name: named[name] for name in ("a", "p", "q", "r")}}
    stored = {name: [float(f"{v:.6g}") for v in values] for name, values in stored.items()}
    return {**stored, "last": float(f"{rows[-1, 1]:.6g}")}


def nearest(tables: dict[int, Entry], count: int) -> Entry:
    """The entry of `count` steps, or of the nearest number of them, of two the larger."""
    return tables[min(tables, key=lambda n: (abs(np.log(n / count)), -n))]


def ratios(entry: Entry, count: int) -> np.ndarray:
    """`count` levels s, spaced as the entry's own."""
    own = np.log(entry["s"])
    if count == len(own):
        return np.array(entry["s"])
    at = np.linspace(0, 1, count)
    return np.exp(np.interp(at, np.linspace(0, 1, len(own)), own))


def rows(entry: Entry, s: np.ndarray) -> np.ndarray:
    """Rows `[len(s), 7]` on the levels s, the last of which makes the sample."""
    count, depth = len(s), -np.log(entry["s"])
    h, own_h = np.diff(-np.log(s)), np.diff(depth)
    parameters = np.zeros((len(Family.ROWS), count))
    parameters[0] = np.append(np.log(h), entry["last"])
    at = -np.log(s)
    if len(own_h):
        a, usual = (np.interp(at[:-1], depth[:-1], v) for v in (entry["a"][:-1], own_h))
        parameters[1, :-1] = a * np.minimum(h / usual, 1)
    for row, name, first in ((2, "p", 1), (3, "q", 2), (4, "r", 3)):
        if len(depth) > first:
            found = np.interp(at[first:], depth[first:], entry[name][first:])
            parameters[row, first:] = found
    return Family(count, s[0]).rows(torch.tensor(parameters)).numpy()
