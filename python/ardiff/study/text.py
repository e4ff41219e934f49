"""Figures and tables as the study's pages have them."""

from __future__ import annotations

import math
from collections.abc import Sequence


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def figure(value: float | None, digits: int = 2, sign: bool = False) -> str:
    """A number without its leading zero, with `sign` a plus where it is one; nothing where it is
    not known."""
    if value is None or math.isnan(value):
        return ""
    if math.isinf(value):
        return "not finite"
    shown = f"{value:{'+' if sign else ''}.{digits}f}"
    return shown.replace("0.", ".", 1) if abs(value) < 1 else shown
