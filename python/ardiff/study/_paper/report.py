"""The papers' experiment as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..text import figure, table

Row = dict[str, Any]

_LINES = {"published": "published", "ours": "accuracy", "1 - TV": "tv_accuracy"}
_ENDS = ("none", "all")  # of a table of faults: as published, and without any


def markdown(found: dict[str, Any]) -> str:
    """The tables of what :func:`ardiff.study.paper.run` found, of the modes that it ran.

    Raises:
        ValueError: not what `run` returns.
    """
    missing = [key for key in ("rows", "faults", "gains", "seeds", "samples") if key not in found]
    if missing:
        raise ValueError(f"expected what ardiff.study.paper.run returns, it has no {missing[0]!r}")
    parts = [
        f"{found['samples']:,} samples, {found['seeds']} sampling "
        f"{'seed' if found['seeds'] == 1 else 'seeds'} from {found['seed']} on."
    ]
    paper = [row for row in found["rows"] if row["mode"] == "paper"]
    correct = [row for row in found["rows"] if row["mode"] == "correct"]
    for target in _distinct(row["target"] for row in found["rows"]):
        if paper:
            parts += [f"### {target}, as published", _reproduced(paper, target)]
            parts += [f"### {target}, one fault mended at a time", _faults(found["faults"], target)]
        if correct:
            parts += [f"### {target}, correct: 1 - TV", _correct(correct, target)]
    if found["gains"]:
        parts += ["### Gains over DDPM", _gains(found["gains"])]
    return "\n\n".join(parts) + "\n"


def _reproduced(rows: Sequence[Row], target: str) -> str:
    """Per method and number of calls: published, reproduced, and 1 - TV of the same samples."""
    rows = [row for row in rows if row["target"] == target]
    calls = _distinct(row["calls"] for row in rows)
    head, lines = ["calls", *map(str, calls), "floor"], []
    for method in _distinct(row["method"] for row in rows):
        of = {row["calls"]: row for row in rows if row["method"] == method}
        for name, key in _LINES.items():
            if of[calls[0]][key] is None:  # nothing published
                continue
            floor = _figure(of[calls[0]]["floor"]) if key == "accuracy" else ""
            lines.append([f"{method}, {name}", *(_figure(of[c][key]) for c in calls), floor])
    return table(head, lines)


def _faults(rows: Sequence[Row], target: str) -> str:
    """Per mended fault and method: the authors' accuracy at each number of calls."""
    rows = [row for row in rows if row["target"] == target]
    methods = _distinct(row["method"] for row in rows)
    calls = _distinct(row["calls"] for row in rows)
    head, lines = ["mended", *methods], []
    at = {(row["mended"], row["method"], row["calls"]): row["accuracy"] for row in rows}
    named = _distinct(row["mended"] for row in rows)
    for mended in (_ENDS[0], *(name for name in named if name not in _ENDS), _ENDS[1]):
        cells = [[at.get((mended, method, c)) for c in calls] for method in methods]
        lines.append([mended, *(_cell(values) for values in cells)])
    return table(head, lines) + f"\n\n(at {' and '.join(map(str, calls))} calls)"


def _correct(rows: Sequence[Row], target: str) -> str:
    rows = [row for row in rows if row["target"] == target]
    calls = _distinct(row["calls"] for row in rows)
    head, lines = ["method", *(f"{c} calls" for c in calls)], []
    for method in _distinct(row["method"] for row in rows):
        of = [row for row in rows if row["method"] == method]
        lines.append([method, *(_with_calls(row) for row in of)])
    lines.append(["exact draws", *[_figure(rows[0]["floor"])] * len(calls)])
    return table(head, lines)


def _with_calls(row: Row) -> str:
    """The figure, its error, and the score calls made where they are not those asked for."""
    error = "" if row["error"] is None else f" ± {_figure(row['error'])}"
    made = "" if row["made"] == row["calls"] else f" ({row['made']:g} made)"
    return f"{_figure(row['accuracy'])}{error}{made}"


def _gains(rows: Sequence[Row]) -> str:
    """Per method: the gain on each target, with its interval over the seeds. Those over DDPM on the
    authors' grid are left out in the mode ``correct``: the tables above show them well enough."""
    rows = [row for row in rows if row["over"] != "ddpm, their grid"]
    targets = _distinct(row["target"] for row in rows)
    head, lines = ["method", "over", "calls", *targets], []
    at = {(r["mode"], r["method"], r["over"], r["calls"], r["target"]): r for r in rows}
    for mode, method, over, calls in _distinct(key[:4] for key in at):
        cells = [at.get((mode, method, over, calls, target)) for target in targets]
        lines.append([method, f"{over} ({mode})", str(calls), *map(_interval, cells)])
    return table(head, lines)


def _interval(row: Row | None) -> str:
    if row is None:
        return ""
    gain, low, high = (figure(row[key], 3, sign=True) for key in ("gain", "low", "high"))
    return f"{gain} ({low} to {high})" if low else gain


def _cell(values: Sequence[float | None]) -> str:
    return "" if values[0] is None else " ".join(map(_figure, values))


def _figure(value: float | None) -> str:
    return figure(value, 3)


def _distinct(values: Iterable) -> list:
    return list(dict.fromkeys(values))
