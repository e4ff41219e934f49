"""Every solver's quality at several budgets of model calls: the evidence of `default_solver`.

    python -m benchmarks.quality_table [SOLVER ...]

prints a line of `EVIDENCE` in `python/ardiff/solvers/_default.py` for each solver (all take about
20 minutes of one core): the distance of `bench_quality`, pooled over the seeds 0 to 3, on the grid
that is best for the solver with seed 0. `--markdown` measures nothing and prints EVIDENCE as the
table of docs/quality.md.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import torch

from ardiff.solvers import SOLVERS
from ardiff.solvers._default import BUDGETS, EVIDENCE, FLOOR
from ardiff.tables.paths import GRIDS

from .bench_quality import distances, pooled

NOISE_SEEDS = (0, 1, 2, 3)


def measured(solver: str, calls: int) -> tuple[float, str]:
    """The distance of a solver with at most `calls` model calls, and its best grid."""
    first = {}
    for grid in GRIDS:
        try:
            first[grid] = pooled(distances(solver, calls, NOISE_SEEDS[0], grid)[0])
        except ValueError:  # too few calls for the solver
            return math.inf, ""
    best = min(first, key=first.get)
    rest = [pooled(distances(solver, calls, seed, best)[0]) for seed in NOISE_SEEDS[1:]]
    return pooled([first[best], *rest]), best


def markdown() -> str:
    """EVIDENCE as a table, the smallest distance of each budget in bold."""
    lines = [
        f"| solver | {' | '.join(f'{budget} calls' for budget in BUDGETS)} |",
        f"|---{'|---' * len(BUDGETS)}|",
    ]
    least = [min(column) for column in zip(*EVIDENCE.values(), strict=True)]
    for solver, values in EVIDENCE.items():
        cells = [
            "" if math.isinf(value) else f"**{_figure(value)}**" if value == low else _figure(value)
            for value, low in zip(values, least, strict=True)
        ]
        lines.append(f"| `{solver}` | {' | '.join(cells)} |")
    return "\n".join([*lines, f"| exact draws {f'| {_figure(FLOOR)} ' * len(BUDGETS)}|"])


def _figure(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure the lines of EVIDENCE.")
    parser.add_argument("solvers", nargs="*", metavar="SOLVER", help="default: all")
    parser.add_argument("--markdown", action="store_true", help="print the table of EVIDENCE")
    asked = parser.parse_args(arguments)
    unknown = sorted(set(asked.solvers) - set(SOLVERS))
    if unknown:
        parser.error(f"unknown solver {unknown[0]!r}: expected some of {', '.join(SOLVERS)}")
    if asked.markdown:
        print(markdown())
        return
    torch.set_num_threads(1)
    for solver in asked.solvers or SOLVERS:
        found = [measured(solver, calls) for calls in BUDGETS]
        figures = ", ".join("inf" if math.isinf(v) else f"{v:.4f}" for v, _ in found)
        print(f'    "{solver}": ({figures}),  # {", ".join(grid or "none" for _, grid in found)}')


if __name__ == "__main__":
    main()
