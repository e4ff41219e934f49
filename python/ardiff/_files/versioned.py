"""JSON files with a format and a version: read whole, or refused with what is wrong and where."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from reprlib import repr as short
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        name: as errors call it, such as "table file".
        format, version: what its fields of these names hold; older versions are read too.
        limit: bytes, at most.
        writer: what writes such files.
        missing: what else a name that is no file may have been meant as, or "".
    """

    name: str
    format: str
    version: int
    limit: int
    writer: str
    missing: str = ""


def read_versioned(path: str | os.PathLike, kind: Kind) -> dict[str, Any]:
    """The object that a file of `kind` holds.

    Raises:
        OSError: a file that is not there or cannot be read.
        ValueError: a file of another kind, one of a newer version, or one that is damaged.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # to open a pipe could block
        raise ValueError(f"{path} is no regular file, expected a {kind.name}")
    try:
        with path.open("rb") as file:
            content = file.read(kind.limit + 1)
    except FileNotFoundError as error:
        said = f"no such {kind.name}" + (f" ({kind.missing})" if kind.missing else "")
        raise FileNotFoundError(error.errno, said, str(path)) from None
    if len(content) > kind.limit:
        raise ValueError(f"{path}: a {kind.name} has at most {kind.limit:,} bytes")
    try:
        value = json.loads(
            content.decode(), object_pairs_hook=_distinct, parse_constant=_no_constant
        )
    except RecursionError:
        raise ValueError(f"{path}: not a {kind.name}, nested too deeply") from None
    except ValueError as error:  # bad JSON or UTF-8 too
        raise ValueError(f"{path}: not a {kind.name}, or a damaged one: {error}") from None
    if not isinstance(value, dict) or value.get("format") != kind.format:
        raise ValueError(
            f'{path}: not a {kind.name}: expected an object with "format": "{kind.format}", as '
            f"{kind.writer} writes it"
        )
    version = value.get("version")
    if type(version) is int and version > kind.version:
        raise ValueError(
            f"{path} is of version {version}, written by a newer release; this one reads up to "
            f"version {kind.version}: update ardiff-kernels"
        )
    if type(version) is not int or version < 1:
        raise ValueError(f"{path}: version must be an integer of 1 or more, got {short(version)}")
    return value


def check_names(where: str, value: dict, needed: tuple, known: tuple = ()) -> None:
    """ValueError where names in `needed` lack, or others than these and `known` are there."""
    missing = [name for name in needed if name not in value]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    unknown = [name for name in value if name not in needed and name not in known]
    if unknown:
        raise ValueError(
            f"{where} has an unknown {short(unknown[0])}; known: {', '.join((*needed, *known))}"
        )


def number(where: str, value: Any) -> float:
    """`value` as a float; ValueError for what is no number or not finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{where} must be a number, got {short(value)}")
    if not abs(value) <= sys.float_info.max:  # a Python float: integers compare exactly
        raise ValueError(f"{where} must be finite in float64")
    return float(value)


def truth(where: str, value: Any) -> bool:
    """`value`; ValueError for what is neither true nor false."""
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
