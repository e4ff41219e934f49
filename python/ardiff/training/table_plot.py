"""The drawing of a table: its levels and weights, an SVG."""

from __future__ import annotations

import numpy as np

WIDTH, PANEL, LEFT, RIGHT, TOP, GAP = 640, 170, 60, 90, 40, 50
LINES = (
    ("y", "#1f618d"), ("D", "#1e8449"), ("D1", "#b03a2e"), ("D2", "#b9770e"), ("D3", "#7d3c98"),
)  # fmt: skip


def svg(rows: np.ndarray, title: str) -> str:
    """Two panels over the rows `[N, 7]` of :mod:`ardiff.tables.ratio_rows`: the level s on a
    logarithmic axis, and the weights of y and of the predictions."""
    levels = np.log10(rows[:, 0])
    weights = [(name, colour, rows[:, i + 1]) for i, (name, colour) in enumerate(LINES)]
    weights = [entry for entry in weights if entry[2].any()]
    values = np.concatenate([entry[2] for entry in weights])
    panels = [
        ("s = sigma / alpha", levels, [("s", "#333", levels)], lambda v: f"{10**v:.3g}"),
        ("weights", values, weights, lambda v: f"{v:.2g}"),
    ]
    height = TOP + len(panels) * (PANEL + GAP)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        _text(LEFT, 16, title, "start"),
    ]
    for number, (name, span, curves, written) in enumerate(panels):
        top = TOP + number * (PANEL + GAP)
        low, high = float(np.min(span)), float(np.max(span))
        high = high if high > low else low + 1
        x = LEFT + (WIDTH - LEFT - RIGHT) * np.linspace(0, 1, max(len(rows), 2))[: len(rows)]
        lines.append(_text(LEFT, top - 6, name, "start"))
        for value in np.linspace(low, high, 5):
            at = round(top + PANEL * (high - value) / (high - low), 1)
            lines.append(f'<path d="M{LEFT} {at}H{WIDTH - RIGHT}" stroke="#ddd"/>')
            lines.append(_text(LEFT - 6, at + 4, written(value), "end"))
        for label, colour, curve in curves:
            y = top + PANEL * (high - curve) / (high - low)
            points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
            lines.append(
                f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
            )
            lines.append(_text(x[-1] + 8, y[-1] + 4, label, "start", colour))
    lines.append(_text((LEFT + WIDTH - RIGHT) / 2, height - 20, "row", "middle"))
    return "\n".join([*lines, "</svg>\n"])


def _text(x: float, y: float, words: str, anchor: str, colour: str = "#333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{words}</text>'
