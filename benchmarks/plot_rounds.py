"""The plot of `bench_rounds`: how many times fewer rounds over the rows looked ahead, an SVG, and
docs/parallel.md's table, which is printed.

    ardiff bench rounds --json out/bench-rounds.json
    python -m benchmarks.plot_rounds out/bench-rounds.json docs/rounds.svg
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

MODELS = {
    "mixture-2": ("mixture, d = 2", "#1f618d"),
    "mixture-10": ("mixture, d = 10", "#1e8449"),
    "mixture-64": ("mixture, d = 64", "#b9770e"),
    "sun-shadow": ("Sun/Shadow, d = 768", "#b03a2e"),
    "mar-b": ("MAR-B's size, d = 16", "#7d3c98"),
}
TABLE = "ddpm/steps=100"  # what is plotted
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 400, 50, 190, 30, 50
FORMS = {"ardiff": "", "frozen": ' stroke-dasharray="5 4"'}


def curves(rows: list[dict]) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """(L, times fewer rounds) of each model and form of guess, in order of L."""
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in rows:
        model, solver, steps, ahead = row["case"].split("/")
        if row["metric"] == "fewer" and f"{solver}/{steps}" == TABLE and ahead[2:].isdecimal():
            found.setdefault((model, row["rival"]), []).append((int(ahead[2:]), row["value"]))
    return {name: sorted(points) for name, points in found.items()}


def table(rows: list[dict]) -> str:
    """A line of each case: rounds, times fewer, states for each row, with frozen guesses, time."""
    cells: dict[str, dict[tuple[str, str], float]] = {}
    for row in rows:
        cells.setdefault(row["case"], {})[row["rival"], row["metric"]] = row["value"]
    lines = [
        ["case", "rounds", "fewer", "states per row", "fewer with frozen guesses", "faster"],
        ["---"] * 6,
    ]
    for case, found in cells.items():

        def cell(form: str, metric: str, unit: str = "", found: dict = found) -> str:
            value = found.get((form, metric))
            return "" if value is None else f"{value:.3g}{unit}"

        lines.append([
            f"`{case}`", cell("ardiff", "rounds"), cell("ardiff", "fewer", "x"),
            cell("ardiff", "states"), cell("frozen", "fewer", "x"),
            cell("sequential", "speedup", "x"),
        ])  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def svg(rows: list[dict]) -> str:
    """The plot; ValueError where the rows hold no rounds."""
    found = curves(rows)
    points = [point for curve in found.values() for point in curve]
    if not points:
        raise ValueError(f"no rounds of {TABLE}: expected the report of `ardiff bench rounds`")
    widths = sorted({rows for rows, _ in points})
    high = 2 * (int(max(fewer for _, fewer in points)) // 2 + 1)

    def place(rows: float, fewer: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * rows / widths[-1]
        return round(x, 1), round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - fewer / high), 1)

    def text(x: float, y: float, words: str, anchor: str, colour: str = "#333") -> str:
        return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}">{words}</text>'

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, "L, rows of a round", "middle"),
        text(LEFT, TOP - 12, "times fewer rounds, ddpm, 100 steps (dashed: frozen)", "start"),
    ]
    for fewer in range(0, high + 1, 2):
        x, y = place(0, fewer)
        lines.append(f'<path d="M{x} {y}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        lines.append(text(x - 6, y + 4, str(fewer), "end"))
    for rows_ahead in widths:
        x, y = place(rows_ahead, 0)
        lines.append(text(x, y + 16, str(rows_ahead), "middle"))
    for (model, form), curve in found.items():
        label, colour = MODELS[model]
        path = " ".join(f"{x},{y}" for x, y in (place(*point) for point in [(1, 1), *curve]))
        lines.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"'
            f"{FORMS[form]}/>"
        )
        if form == "ardiff":
            x, y = place(*curve[-1])
            lines.append(text(x + 8, y + 4, label, "start", colour))
    return "\n".join([*lines, "</svg>\n"])


def main(argv: Sequence[str] | None = None) -> None:
    """Draws the plot of a report and prints its table; exits with a line where it cannot."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plot_rounds", description="The plot and the table of a report."
    )
    parser.add_argument("report", type=Path, help="what `ardiff bench rounds --json` wrote")
    parser.add_argument("out", type=Path, help="the SVG to write")
    args = parser.parse_args(argv)
    try:
        rows = json.loads(args.report.read_text())["rows"]
        drawing = svg(rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f"{args.report}: {error}; `ardiff bench rounds --json` writes such a report")
    args.out.write_text(drawing)
    print(table(rows))


if __name__ == "__main__":
    main()
