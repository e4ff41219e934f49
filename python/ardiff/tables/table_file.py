"""Table files: a StepTable as readable JSON, exact to the bit. Their names end in ``.table.json``.

A file is an object whose `rows` are the rows of the table, a line each, with the columns that are
not 0 by name::

    {
      "format": "ardiff step table", "version": 1, "solver": "ddim", "path": "edm",
      "prediction": "sample", "init_scale": 40.0, "energy": false,
      "rows": [
        {"op": "diffusion", "level": 40.0, "call": true, "alpha": 1.0, "sigma": 40.0,
         "weights": {"p_o": 1.0, "x_x": 5e-05, "x_0": 0.99995}},
        ...
      ]
    }

`call` is whether the row calls the model. `alpha` and `sigma`, the path's coefficients at the
level, are there in all rows or in none: with them a table needs no beta schedule. `saves_origin`,
`midpoint` and `ball_margin` are there where they are not false or 0.

The version is raised when a file of the older form would be read wrongly, or one of the newer form
would by older code, which refuses it.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from reprlib import repr as short
from typing import TYPE_CHECKING, Any

import numpy as np

from .._files import replacing
from .._files.versioned import Kind, check_names, number, read_versioned, truth
from .columns import COLUMNS, WIDTH

if TYPE_CHECKING:
    from .table import StepTable

FORMAT = "ardiff step table"
VERSION = 1
SIZE_LIMIT = 2**25  # bytes, of about 100,000 rows
_TEXTS = ("solver", "path", "prediction")
_HEADER = ("format", "version", *_TEXTS, "init_scale", "energy", "rows")
_ROW, _ROW_OPTIONS = (
    ("op", "level", "call", "weights"),
    ("alpha", "sigma", "saves_origin", "midpoint", "ball_margin"),
)


def write_table(path: str | os.PathLike, table: StepTable) -> None:
    """Writes a table file, whole or not at all.

    Raises:
        ValueError: a number in a column that its op does not have, or too many rows.
        OSError: the file cannot be written.
    """
    header = {
        "format": FORMAT,
        "version": VERSION,
        **{name: getattr(table, name) for name in _TEXTS},
        "init_scale": float(table.init_scale),
        "energy": bool(table.energy),
    }
    rows = ",\n".join(
        f"    {json.dumps(_row(table, i), allow_nan=False)}" for i in range(len(table))
    )
    text = json.dumps(header, indent=2).removesuffix("\n}") + f',\n  "rows": [\n{rows}\n  ]\n}}\n'
    if len(text) > SIZE_LIMIT:
        raise ValueError(
            f"a table of {len(table)} rows makes a file of {len(text):,} bytes; at most "
            f"{SIZE_LIMIT:,} are read again"
        )
    with replacing(Path(path)) as temporary:
        temporary.write_text(text)


def _row(table: StepTable, i: int) -> dict[str, Any]:
    names, values = COLUMNS[table.op[i]], table.coefficients[i].tolist()
    if any(values[len(names) :]):
        raise ValueError(
            f"row {i} of op {table.op[i]} has a number past its {len(names)} columns, which no op "
            "reads: set it to 0"
        )
    row = {"op": table.op[i], "level": float(table.level[i]), "call": bool(table.calls_model[i])}
    if table.alpha is not None:
        row |= {"alpha": float(table.alpha[i]), "sigma": float(table.sigma[i])}
    flags = {
        "saves_origin": bool(table.saves_origin[i]),
        "midpoint": bool(table.midpoint[i]),
        "ball_margin": float(table.ball_margin[i]),
    }
    row |= {name: value for name, value in flags.items() if value}
    pairs = zip(names, values, strict=False)
    # -0.0 is kept: a loaded table has the bits of the saved one
    row["weights"] = {n: v for n, v in pairs if v or math.copysign(1, v) < 0}
    return row


def read_fields(path: str | os.PathLike) -> dict[str, Any]:
    """The arguments of the StepTable that a file holds; the StepTable checks their values.

    Raises:
        OSError: a file that is not there or cannot be read.
        ValueError: not a table file, one of a newer version, or one that is damaged; the message
            names the file and the place in it.
    """
    kind = Kind(
        "table file", FORMAT, VERSION, SIZE_LIMIT, writer="StepTable.save",
        missing="the name of a solver goes to solver=",
    )  # fmt: skip
    value = read_versioned(path, kind)
    try:
        return _fields(value)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _fields(value: dict) -> dict[str, Any]:
    check_names("the file", value, _HEADER)
    for name in _TEXTS:
        if not isinstance(value[name], str) or not value[name]:
            raise ValueError(f"{name} must be text, got {short(value[name])}")
    rows = value["rows"]
    if not isinstance(rows, list) or not rows:
        raise ValueError("rows must be a list of one row or more")
    for i, row in enumerate(rows):
        _check_row(i, row)
    scaled = "alpha" in rows[0]
    if any(("alpha" in row) != scaled or ("sigma" in row) != scaled for row in rows):
        raise ValueError("alpha and sigma must both be in all rows, or in none")
    coefficients = np.zeros((len(rows), WIDTH))
    for i, row in enumerate(rows):
        for name, weight in row["weights"].items():
            coefficients[i, COLUMNS[row["op"]].index(name)] = weight
    return {
        **{name: value[name] for name in _TEXTS},
        "coefficients": coefficients,
        "level": np.array([row["level"] for row in rows], np.float64),
        "calls_model": np.array([row["call"] for row in rows]),
        "op": tuple(row["op"] for row in rows),
        "init_scale": number("init_scale", value["init_scale"]),
        "energy": truth("energy", value["energy"]),
        "saves_origin": np.array([row.get("saves_origin", False) for row in rows]),
        "midpoint": np.array([row.get("midpoint", False) for row in rows]),
        "ball_margin": np.array([row.get("ball_margin", 0.0) for row in rows], np.float64),
        "alpha": np.array([row["alpha"] for row in rows], np.float64) if scaled else None,
        "sigma": np.array([row["sigma"] for row in rows], np.float64) if scaled else None,
    }


def _check_row(i: int, row: Any) -> None:
    """Raises ValueError for a row of other names or kinds of values than a row has."""
    where = f"row {i}"
    if not isinstance(row, dict):
        raise ValueError(f"{where} must be an object, got {short(row)}")
    check_names(where, row, _ROW, _ROW_OPTIONS)
    op, weights = row["op"], row["weights"]
    if not isinstance(op, str) or op not in COLUMNS:
        raise ValueError(f"{where}: unknown op {short(op)}; known: {', '.join(COLUMNS)}")
    if not isinstance(weights, dict):
        raise ValueError(f"{where}: weights must be an object of columns, got {short(weights)}")
    check_names(f"{where}, weights of op {op}", weights, (), COLUMNS[op])
    for name, weight in weights.items():
        number(f"{where}, {name}", weight)
    for name in ("level", "alpha", "sigma", "ball_margin"):
        if name in row:
            number(f"{where}, {name}", row[name])
    for name in ("call", "saves_origin", "midpoint"):
        if name in row:
            truth(f"{where}, {name}", row[name])
