"""A study's tables in Markdown, its Pareto plots, and its rows as plain data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, fields
from pathlib import Path

from .mixture import PLAN, Row
from .pooling import Floors, Results
from .text import figure, table

RIVAL = "ddpm"
NEAR = 1.1  # of the best: a recommendation within it has hit
TELL = {
    "exact": "The exact score",
    "perturbed": "The exact score and a smooth error of a tenth of the network's output",
    "guided": "The exact score with guidance of weight 3, against the law of its own exact ODE",
    "learned": "A network trained on draws of the target",
}
METRICS = {
    "sliced_w2": "sliced W2",
    "sliced_w1": "sliced W1",
    "energy": "energy distance",
    "mmd": "MMD",
    "mode_weights": "mode weights",
    "within_variance": "within-mode variance",
    "strong": "strong error",
}


def by_budget(results: Results, score: str, metric: str = "sliced_w2") -> str:
    """Methods by budget: the metric in units of its floor, the best of each budget in bold."""
    columns = {
        budget: {name: results.pooled(score, name, budget, metric) for name in results.methods}
        for budget in results.budgets
    }
    least = {budget: _least(column.values()) for budget, column in columns.items()}
    lines = []
    for name in results.methods:
        cells = [columns[budget][name] for budget in results.budgets]
        shown = [
            f"**{figure(value)}**" if value == least[budget] else figure(value)
            for budget, value in zip(results.budgets, cells, strict=True)
        ]
        lines.append([f"`{name}`", *shown])
    return table(["method", *[f"{budget} calls" for budget in results.budgets]], lines)


def _least(values) -> float:
    return min((value for value in values if math.isfinite(value)), default=math.nan)


def against(results: Results, score: str, rival: str, metric: str = "sliced_w2") -> str:
    """Ratios to a rival by budget, each with its 95% interval over seeds."""
    lines = []
    for name in results.methods:
        ratios = [results.ratio(score, name, rival, b, metric) for b in results.budgets]
        if name != rival and any(ratios):
            lines.append([f"`{name}`", *["" if each is None else str(each) for each in ratios]])
    return table([f"to `{rival}`", *[f"{budget} calls" for budget in results.budgets]], lines)


def all_metrics(results: Results, score: str, budget: int) -> str:
    """Every metric at one budget, in units of its floor; the strong error, in units of the norm,
    of deterministic methods alone."""
    names = [name for name in METRICS if _known(results, score, budget, name)]
    lines = []
    for method in results.methods:
        values = [results.pooled(score, method, budget, name) for name in names]
        if any(map(math.isfinite, values)):
            digits = [4 if name == "strong" else 2 for name in names]
            cells = map(figure, values, digits)
            lines.append([f"`{method}`", *cells])
    return table(["method", *[METRICS[name] for name in names]], lines)


def _known(results: Results, score: str, budget: int, metric: str) -> bool:
    return any(
        math.isfinite(results.pooled(score, name, budget, metric)) for name in results.methods
    )


def fronts(results: Results, metric: str = "sliced_w2") -> str:
    """The Pareto front of each score, in units of the floor."""
    lines = [
        [score, str(calls), f"`{name}`", figure(value)]
        for score in results.scores
        for calls, name, value in results.front(score, metric)
    ]
    return table(
        ["score", "calls", "not beaten with as many or fewer", f"{METRICS[metric]} / floor"], lines
    )


def planned(results: Results, metric: str = "sliced_w2") -> str:
    """How often what is recommended is within a tenth of the best other method of a case, and how
    often of that or the floor, below which the best of many methods is by chance."""
    cases = results.cases(PLAN, metric)
    lines = []
    for score in (*results.scores, "all"):
        for pooled in (True, False):
            of = [
                each
                for each in cases
                if score in (each.score, "all") and (each.target == "all") == pooled
            ]
            if of:
                counts = [
                    sum(each.to_floor <= NEAR for each in of),
                    sum(each.ratio <= NEAR for each in of),
                    sum(each.low > NEAR for each in of),
                ]
                worst = max(of, key=lambda each: each.ratio)
                lines.append([
                    score, "all targets together" if pooled else "each target", str(len(of)),
                    *map(str, counts),
                    f"{figure(worst.ratio)}: {worst.target}, {worst.budget} calls, `{worst.best}`",
                ])  # fmt: skip
    head = ["score", "a case is", "cases", "within a tenth of the best or of the floor"]
    head += ["of the best", "further by more than chance", "ratio to the best, at worst"]
    return table(head, lines)


def markdown(results: Results, middle: int) -> str:
    """The comparison of solvers; `middle` is the budget at which all metrics are shown."""
    parts = []
    for score in results.scores:
        targets = ", ".join(results.targets(score))
        parts.append(f"## Score: {score}\n\n{TELL[score]}. Targets: {targets}.")
        parts.append("Sliced W2 in units of its floor, what exact draws of as many samples have:")
        parts.append(by_budget(results, score))
        if RIVAL in results.methods and len(results.methods) > 1:
            parts.append(f"Ratios to `{RIVAL}`, with the 95% interval over seeds:")
            parts.append(against(results, score, RIVAL))
        parts.append(f"All metrics at {middle} calls, in units of their floors:")
        parts.append(all_metrics(results, score, middle))
    parts.append("## Pareto fronts\n\n" + fronts(results))
    if PLAN in results.methods:
        parts.append(
            "## What `ardiff plan` recommends, beside the best other method\n\n" + planned(results)
        )
    return "\n\n".join(parts) + "\n"


def plot(results: Results, score: str, path: Path, metric: str = "sliced_w2") -> None:
    """Calls against the metric in units of its floor, every method a line, those of the front in
    colour.

    Raises:
        ImportError: matplotlib is missing; the extra `plots` brings it.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "ardiff"  # equal results draw equal files
    figure_, axes = pyplot.subplots(figsize=(7, 4.5))
    front = list(dict.fromkeys(name for _, name, _ in results.front(score, metric)))
    for name in [*[each for each in results.methods if each not in front], *front]:
        values = [results.pooled(score, name, budget, metric) for budget in results.budgets]
        known = [
            (budget, value)
            for budget, value in zip(results.budgets, values, strict=True)
            if math.isfinite(value)
        ]
        if known:
            style = {"label": name, "marker": "o"} if name in front else {"color": "0.85"}
            axes.plot(*zip(*known, strict=True), **style)
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":", label="exact draws")
    axes.set(xscale="log", yscale="log", xlabel="model calls", ylabel=f"{METRICS[metric]} / floor")
    axes.set_xticks(results.budgets, [str(budget) for budget in results.budgets], minor=False)
    axes.minorticks_off()
    axes.set_title(f"score: {score}")
    axes.legend(fontsize=8)
    figure_.savefig(path, format="svg", metadata={"Date": None}, bbox_inches="tight")
    pyplot.close(figure_)


def plain(rows: Sequence[Row], floors: Floors) -> dict:
    """The rows and floors as JSON takes them: a line for each run, its names in `columns`."""
    names = list(METRICS)
    lines = [
        [*astuple(row)[:-1], *[_rounded(row.metrics.get(name)) for name in names]] for row in rows
    ]
    columns = [each.name for each in fields(Row)][:-1]
    return {
        "columns": [*columns, *names],
        "rows": lines,
        "floors": [[*place, found] for place, found in floors.items()],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
