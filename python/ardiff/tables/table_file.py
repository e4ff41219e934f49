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
import sys
from pathlib import Path
from reprlib import repr as short
from typing import TYPE_CHECKING, Any

import numpy as np

from .._files import replacing
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
    path = Path(path)
    if path.exists() and not path.is_file():  # to open a pipe could block
        raise ValueError(f"{path} is no regular file, expected a table file")
    try:
        with path.open("rb") as file:
            content = file.read(SIZE_LIMIT + 1)
    except FileNotFoundError as error:
        said = "no such table file (the name of a solver goes to solver=)"
        raise FileNotFoundError(error.errno, said, str(path)) from None
    if len(content) > SIZE_LIMIT:
        raise ValueError(f"{path}: a table file has at most {SIZE_LIMIT:,} bytes")
    try:
        value = json.loads(
            content.decode(), object_pairs_hook=_distinct, parse_constant=_no_constant
        )
    except RecursionError:
        raise ValueError(f"{path}: not a table file, nested too deeply") from None
    except ValueError as error:  # bad JSON or UTF-8 too
        raise ValueError(f"{path}: not a table file, or a damaged one: {error}") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ValueError(
            f'{path}: not a table file: expected an object with "format": "{FORMAT}", as '
            "StepTable.save writes it"
        )
    version = value.get("version")
    if type(version) is int and version > VERSION:
        raise ValueError(
            f"{path} is of version {version}, written by a newer release; this one reads up to "
            f"version {VERSION}: update ardiff-kernels"
        )
    if type(version) is not int or version < 1:
        raise ValueError(f"{path}: version must be an integer of 1 or more, got {short(version)}")
    try:
        return _fields(value)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _fields(value: dict) -> dict[str, Any]:
    _check_names("the file", value, _HEADER)
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
        "init_scale": _number("init_scale", value["init_scale"]),
        "energy": _truth("energy", value["energy"]),
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
    _check_names(where, row, _ROW, _ROW_OPTIONS)
    op, weights = row["op"], row["weights"]
    if not isinstance(op, str) or op not in COLUMNS:
        raise ValueError(f"{where}: unknown op {short(op)}; known: {', '.join(COLUMNS)}")
    if not isinstance(weights, dict):
        raise ValueError(f"{where}: weights must be an object of columns, got {short(weights)}")
    _check_names(f"{where}, weights of op {op}", weights, (), COLUMNS[op])
    for name, weight in weights.items():
        _number(f"{where}, {name}", weight)
    for name in ("level", "alpha", "sigma", "ball_margin"):
        if name in row:
            _number(f"{where}, {name}", row[name])
    for name in ("call", "saves_origin", "midpoint"):
        if name in row:
            _truth(f"{where}, {name}", row[name])


def _check_names(where: str, value: dict, needed: tuple, known: tuple = ()) -> None:
    missing = [name for name in needed if name not in value]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    unknown = [name for name in value if name not in needed and name not in known]
    if unknown:
        raise ValueError(
            f"{where} has an unknown {short(unknown[0])}; known: {', '.join((*needed, *known))}"
        )


def _number(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{where} must be a number, got {short(value)}")
    if not abs(value) <= sys.float_info.max:  # a Python float: integers compare exactly
        raise ValueError(f"{where} must be finite in float64")
    return float(value)


def _truth(where: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{where} must be true or false, got {short(value)}")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{short(next(n for n in names if names.count(n) > 1))} is there twice")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")
