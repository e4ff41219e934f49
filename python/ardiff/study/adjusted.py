"""The bias of Metropolised solvers by their rule of acceptance, on one line.

`rtk-harmonic-mala`, `rtk-mala` and `rtk-hmc` accept by the difference of the energies of a proposal
and its origin: given (``energy``), or as the integral of the score between them, by Simpson's rule
(``simpson``, a further call per proposal) or the trapezoidal one (``trapezoid``, none). Energies
leave no bias but that of too few steps, and the integral's error is one that more steps of the same
size do not mend. On a mixture of three modes in one dimension the distance of the samples' law from
the target is measured to some thousandths: total variation over bins of equal mass, beside the same
distance of as many exact draws, the floor.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..loop.stats import AcceptanceWarning
from ..sampling import sample
from .line import PATH, PREDICTION, RATIO_MIN, Line, target, total_variation
from .text import figure, table

TITLE = "The bias of accept-reject solvers by their rule of acceptance"
CHAINS = {"rtk-harmonic-mala": 300_000, "rtk-mala": 100_000, "rtk-hmc": 100_000}
CHAINS_CUT, FLOORS = 20_000, 8
# Inner proposals per stage by the calls of a run: the more there are to spend, the longer a chain
# runs at one level, and the more its law is that which the rule leaves unchanged.
INNER = {32: 2, 128: 4, 512: 12}
BOUND = 1.1  # on the distance over the floor, at the most calls
RULES = ("trapezoid", "simpson", "energy")
SOLVERS: dict[str, dict[str, float]] = {
    "rtk-harmonic-mala": {"window_low": 0.02, "window_high": 3.0},  # where the modes are told apart
    "rtk-mala": {"tau": 0.6},
    "rtk-hmc": {"leapfrog": 2},
}


def draw(
    solver: str, rule: str, calls: int, chains: int, seed: int
) -> tuple[Tensor, dict[str, Any]]:
    """Samples `[chains, 1]` of a solver with a rule, and what its row of the report says of them.

    A proposal of `leapfrog` steps costs as many calls, so that there are fewer of them.
    """
    line, options = Line(), SOLVERS[solver]
    inner = max(1, INNER[calls] // int(options.get("leapfrog", 1)))
    energies = {"energy_fn": line.energy} if rule == "energy" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AcceptanceWarning)  # narrow stages accept nearly all
        x, stats = sample(
            line.model, (chains, 1), PATH, PREDICTION, solver, calls, seed=seed, accept=rule,
            inner=inner, ratio_min=RATIO_MIN, return_stats=True, **options, **energies,
        )  # fmt: skip
    row = {"solver": solver, "accept": rule, "calls": calls, "made": stats.calls, "inner": inner}
    return x, row | {"chains": chains, "acceptance": float(stats.acceptance.mean())}


def floors(chains: int, seed: int) -> list[float]:
    """The distance of exact draws, several times."""
    generator = torch.Generator().manual_seed(seed)
    return [total_variation(target().sample(chains, generator)) for _ in range(FLOORS)]


def run(seed: int, cut: bool) -> dict[str, Any]:
    """The distance of every solver and rule at 32, 128 and 512 calls.

    Args:
        seed: of the chains and of the exact draws.
        cut: one solver with 20,000 chains, at 32 and 512 calls, in some seconds.

    Returns:
        Plain numbers: `floors`, by number of chains the mean and deviation (`std`) of the distances
        of exact draws; `rows`, of each the solver, its rule `accept`, `chains`, calls allowed and
        made, inner proposals per stage, share accepted, total variation `tv`, and that
        `over_floor`; `bound`, and `met`: of each solver whether Simpson's rule and the energies
        keep to the bound at the most calls, and how far off the trapezoid is.
    """
    chains = {"rtk-hmc": CHAINS_CUT} if cut else CHAINS
    exact = {count: np.array(floors(count, seed)) for count in set(chains.values())}
    rows = []
    for solver, count in chains.items():
        for rule in RULES:
            for calls in [min(INNER), max(INNER)] if cut else INNER:
                x, row = draw(solver, rule, calls, count, seed)
                tv = total_variation(x)
                rows.append({**row, "tv": tv, "over_floor": tv / float(exact[count].mean())})
    most = {(r["solver"], r["accept"]): r["over_floor"] for r in rows if r["calls"] == max(INNER)}
    return {
        "floors": {
            str(count): {"mean": float(tv.mean()), "std": float(tv.std(ddof=1))}
            for count, tv in exact.items()
        },
        "rows": rows,
        "bound": BOUND,
        "met": {
            solver: {
                "simpson": most[solver, "simpson"] <= BOUND,
                "energy": most[solver, "energy"] <= BOUND,
                "trapezoid_over_floor": most[solver, "trapezoid"],
            }
            for solver in chains
        },
    }


def markdown(found: dict[str, Any]) -> str:
    """The distances over the floor, a line per solver and rule."""
    budgets = sorted({row["calls"] for row in found["rows"]})
    over = {(r["solver"], r["accept"], r["calls"]): r for r in found["rows"]}
    floors = ", ".join(
        f"{int(count):,} chains {floor['mean']:.5f} (single draws deviate by "
        f"{floor['std'] / floor['mean']:.0%})"
        for count, floor in found["floors"].items()
    )
    lines = []
    for solver, rule in dict.fromkeys((r["solver"], r["accept"]) for r in found["rows"]):
        cells = [figure(over[solver, rule, budget]["over_floor"]) for budget in budgets]
        last = over[solver, rule, budgets[-1]]
        accepted = figure(last["acceptance"], 3)
        lines.append([f"`{solver}`", rule, f"{last['chains']:,}", *cells, accepted])
    head = ["solver", "accept", "chains", *(f"{budget} calls" for budget in budgets), "accepted"]
    told = f"Total variation on a line over that of as many exact draws, the floor: {floors}."
    return f"{told}\n\n{table(head, lines)}"
