"""The evidence of `ardiff.default_solver`: every solver's quality at several budgets of calls.

    python -m benchmarks.quality_table [--broken] [SOLVER ...]

measures and prints lines of `EVIDENCE` in `python/ardiff/solvers/_default.py`, or with `--broken`
of `BROKEN`; all solvers take about 40 minutes of one core. `--markdown` measures nothing and prints
the two as the table of docs/quality.md.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import torch

import ardiff
from ardiff.data.sun_shadow_metrics import metrics
from ardiff.solvers import SOLVERS
from ardiff.solvers._default import BROKEN, BUDGETS, EVIDENCE, FLOOR
from ardiff.study.intervals import geometric_mean
from ardiff.study.text import figure, table

from .bench_quality import distances

NOISE_SEEDS = (0, 1, 2, 3)
GRIDS = ("log-snr", "uniform", "karras")
GRIDS_TRIED_UP_TO = 16  # calls; above, the default grid alone
RESTART_CALLS = 9  # the least with its default options
IMAGES, IMAGE_SEEDS, IMAGE_CALLS = 1000, (0, 1), 16


def measured(solver: str, calls: int) -> tuple[float, str]:
    """The distance of `bench_quality` with at most `calls` model calls, pooled over the seeds, on
    the grid that is best with the first of them, and that grid; infinite where it needs more."""
    grids: tuple[str | None, ...] = GRIDS if calls <= GRIDS_TRIED_UP_TO else ("log-snr",)
    if solver == "learned":
        grids = (None,)  # its own levels
    elif solver == "restart" and calls < RESTART_CALLS:
        return math.inf, ""
    first = {
        grid: geometric_mean(distances(solver, calls, NOISE_SEEDS[0], grid)[0]) for grid in grids
    }
    best = min(first, key=first.get)
    rest = [geometric_mean(distances(solver, calls, seed, best)[0]) for seed in NOISE_SEEDS[1:]]
    return geometric_mean([first[best], *rest]), best


def broken(solver: str) -> int:
    """Images of the shipped model without a sun, a pole or a shadow."""
    own = {"grid": None} if solver == "learned" else {}
    sampler = ardiff.ARSampler(ardiff.load("sun-shadow"), solver, steps=IMAGE_CALLS, **own)
    found = [metrics(sampler.sample(IMAGES, seed=s).images.numpy()) for s in IMAGE_SEEDS]
    return sum(round(IMAGES * (1 - each.detection)) for each in found)


def markdown() -> str:
    """EVIDENCE and BROKEN as a table, the smallest distance of each budget in bold."""
    head = [f"{budget} calls" for budget in BUDGETS]
    least = [min(column) for column in zip(*EVIDENCE.values(), strict=True)]
    lines = []
    for solver, values in EVIDENCE.items():
        cells = [
            f"**{_figure(value)}**" if value == low else _figure(value)
            for value, low in zip(values, least, strict=True)
        ]
        lines.append([f"`{solver}`", *cells, str(BROKEN.get(solver, ""))])
    lines.append(["exact draws", *[_figure(FLOOR)] * len(BUDGETS), ""])
    return table(["solver", *head, "broken of 2,000"], lines)


def _figure(value: float) -> str:
    return figure(value, 4) if math.isfinite(value) else "more needed"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure the evidence of default_solver.")
    parser.add_argument("solvers", nargs="*", metavar="SOLVER", help="default: all")
    parser.add_argument("--broken", action="store_true", help="images of the shipped model")
    parser.add_argument("--markdown", action="store_true", help="print the evidence as a table")
    asked = parser.parse_args(arguments)
    unknown = sorted(set(asked.solvers) - set(SOLVERS))
    if unknown:
        parser.error(f"unknown solver {unknown[0]!r}: expected some of {', '.join(SOLVERS)}")
    if asked.markdown:
        print(markdown())
        return
    torch.set_num_threads(1)
    for solver in asked.solvers or (BROKEN if asked.broken else SOLVERS):
        if asked.broken:
            print(f'    "{solver}": {broken(solver)},', flush=True)
            continue
        found = [measured(solver, calls) for calls in BUDGETS]
        figures = ", ".join(f"{v:.4f}" if math.isfinite(v) else "inf" for v, _ in found)
        names = ", ".join(grid or "own levels" for _, grid in found)
        print(f'    "{solver}": ({figures}),  # {names}', flush=True)


if __name__ == "__main__":
    main()
