"""The curve of `bench_context`, time per patch against patches before it: an SVG, both in powers,
and the README's table, which is printed.

    ardiff bench context --json out/bench-context.json
    python -m benchmarks.plot_context out/bench-context.json docs/context_cost.svg
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

CURVES = (
    ("reference-ddpm", "encoder-time", "prefix encoded anew", "#b03a2e"),
    ("sdpa", "encoder-time", "cache, SDPA", "#7f8c8d"),
    ("ardiff", "encoder-time", "cache, kv_attention", "#1f618d"),
    ("ardiff", "sampling-time", "whole patch, 100 steps", "#1e8449"),
)
# A line of the table: rival and metric; times have no spread there.
LINES = (
    ("ardiff", "encoder-time", "ms per patch, K patches in the cache"),
    ("ardiff", "encoder-growth", "growth from K = 64"),
    ("sdpa", "speedup", "the same cache read by SDPA takes longer by"),
    ("reference-ddpm", "speedup", "re-encoding the prefix takes longer by"),
    ("ardiff", "sampling-growth", "growth of a whole patch, head of 100 steps included"),
)
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 400, 70, 190, 20, 50


def _length(row: dict) -> int:
    return int(row["case"].split("/K=")[1].split("/")[0])


def curves(rows: list[dict]) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """(K, milliseconds) of each rival and metric, in order of K."""
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in rows:
        if row["unit"] == "ms/patch":
            found.setdefault((row["rival"], row["metric"]), []).append((_length(row), row["value"]))
    return {name: sorted(points) for name, points in found.items()}


def table(rows: list[dict]) -> str:
    """The table in Markdown, a column a length K: medians, with the quartiles of ratios."""
    of_curve = [row for row in rows if "/K=" in row["case"]]  # the suite has other cases too
    cells = {(row["rival"], row["metric"], _length(row)): row for row in of_curve}
    lengths = sorted({k for _, metric, k in cells if metric == "encoder-time"})

    def cell(rival: str, metric: str, k: int) -> str:
        row = cells.get((rival, metric, k))
        if row is None:
            return ""
        if row["unit"] == "ms/patch":
            return f"{row['value']:.0f}"
        digits = 1 if row["value"] >= 9.95 else 2
        middle, low, high = (f"{row[name]:.{digits}f}" for name in ("value", "low", "high"))
        return f"{middle}x ({low} to {high})"

    head = ["K", *map(str, lengths)]
    body = [[label, *(cell(*line, k) for k in lengths)] for *line, label in LINES]
    return "\n".join(
        f"| {' | '.join(part)} |" for part in [head, ["---"] * len(head), *body]
    ).replace("  ", " ")


def svg(rows: list[dict]) -> str:
    """The plot; ValueError where the rows hold no times."""
    found = curves(rows)
    points = [point for curve in found.values() for point in curve]
    if not points:
        raise ValueError("no rows in ms/patch: expected the report of `ardiff bench context`")
    ks = [k for k, _ in points]
    decades = [math.log10(ms) for _, ms in points]
    low, high = math.floor(min(decades)), max(math.ceil(max(decades)), math.floor(min(decades)) + 1)
    octaves = max(math.log2(max(ks) / min(ks)), 1)

    def place(k: float, ms: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * math.log2(k / min(ks)) / octaves
        y = TOP + (HEIGHT - TOP - BOTTOM) * (high - math.log10(ms)) / (high - low)
        return round(x, 1), round(y, 1)

    def text(x: float, y: float, words: str, anchor: str, colour: str = "#333") -> str:
        return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}">{words}</text>'

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, "K, patches in the context", "middle"),
        text(LEFT, TOP - 6, "ms per patch of 8 images", "middle"),
    ]
    for decade in range(low, high + 1):
        x, y = place(min(ks), 10**decade)
        lines.append(f'<path d="M{x} {y}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        lines.append(text(x - 6, y + 4, f"{10**decade:g}", "end"))
    for k in sorted(set(ks)):
        x, y = place(k, 10**low)
        lines.append(f'<path d="M{x} {y}V{TOP}" stroke="#eee"/>')
        lines.append(text(x, y + 16, str(k), "middle"))
    for rival, metric, label, colour in CURVES:
        curve = [place(*point) for point in found.get((rival, metric), [])]
        if curve:
            path = " ".join(f"{x},{y}" for x, y in curve)
            lines.append(
                f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
            )
            lines.append(text(curve[-1][0] + 8, curve[-1][1] + 4, label, "start", colour))
    return "\n".join([*lines, "</svg>\n"])


def main(argv: Sequence[str] | None = None) -> None:
    """Draws the plot of a report and prints its table; exits with a line where it cannot."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plot_context", description="The plot and the table of a report."
    )
    parser.add_argument("report", type=Path, help="what `ardiff bench context --json` wrote")
    parser.add_argument("out", type=Path, help="the SVG to write")
    args = parser.parse_args(argv)
    try:
        rows = json.loads(args.report.read_text())["rows"]
        drawing = svg(rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f"{args.report}: {error}; `ardiff bench context --json` writes such a report")
    args.out.write_text(drawing)
    print(table(rows))


if __name__ == "__main__":
    main()
