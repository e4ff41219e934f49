"""How many drafted rows a round keeps, by the row that its window begins with: an SVG, a curve for
each patch of the shipped model, from `stats.lookahead` of an `ARSampler`.

    python -m benchmarks.plot_kept docs/kept_rows.svg
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import ardiff
from ardiff.loop.lookahead import Rounds

STEPS, ROWS, IMAGES = 100, 16, 64
BINS = 20  # of first rows
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 360, 50, 90, 30, 50
COLOURS = ("#1f618d", "#1e8449", "#b9770e", "#b03a2e")


def kept(rounds: Rounds, rows: int) -> np.ndarray:
    """The mean number of rows kept in windows that begin in each of :data:`BINS` runs of rows,
    float64 `[BINS]`; NaN where none does."""
    counts = rounds.histogram(rows)
    each = np.add.reduceat(counts, np.linspace(0, rows, BINS, endpoint=False).astype(int))
    with np.errstate(invalid="ignore"):
        return each @ np.arange(each.shape[1]) / each.sum(1)


def svg(patches: Sequence[Rounds], rows: int) -> str:
    """The plot of the rounds of each patch, in order."""

    def place(bin_: float, count: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * bin_ / BINS
        return round(x, 1), round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - count / ROWS), 1)

    def text(x: float, y: float, words: str, anchor: str, colour: str = "#333") -> str:
        return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}">{words}</text>'

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, "first row of the window", "middle"),
        text(LEFT, TOP - 12, f"rows kept of {ROWS}", "start"),
    ]
    for count in range(0, ROWS + 1, 4):
        x, y = place(0, count)
        lines.append(f'<path d="M{x} {y}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        lines.append(text(x - 6, y + 4, str(count), "end"))
    for row in range(0, rows + 1, rows // 5):
        x, y = place(row * BINS / rows, 0)
        lines.append(text(x, y + 16, str(row), "middle"))
    for patch, rounds in enumerate(patches):
        found, colour = kept(rounds, rows), COLOURS[patch % len(COLOURS)]
        points = [place(i + 0.5, count) for i, count in enumerate(found) if np.isfinite(count)]
        path = " ".join(f"{x},{y}" for x, y in points)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        label = text(WIDTH - RIGHT + 8, TOP + 16 * (patch + 1), f"patch {patch}", "start", colour)
        lines.append(label)
    return "\n".join([*lines, "</svg>\n"])


def main(argv: Sequence[str] | None = None) -> None:
    """Draws images with a lookahead and writes the plot."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plot_kept", description="Rows kept, by first row and patch."
    )
    parser.add_argument("out", type=Path, help="the SVG to write")
    args = parser.parse_args(argv)
    sampler = ardiff.ARSampler(ardiff.load("sun-shadow"), "ddpm", steps=STEPS, lookahead=ROWS)
    stats = sampler.sample(IMAGES, seed=0).stats
    args.out.write_text(svg(stats.lookahead, len(sampler.table)))


if __name__ == "__main__":
    main()
