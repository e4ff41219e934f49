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

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.mixture import GaussianMixture
from ..loop.stats import AcceptanceWarning
from ..sampling import sample
from ..tables.paths import get_path

PATH, PREDICTION = "ou", "sample"
CENTRES, STDS, WEIGHTS = (-1.0, -0.2, 0.9), (0.1, 0.15, 0.25), (0.5, 0.2, 0.3)
BINS = 64
CHAINS = {"rtk-harmonic-mala": 300_000, "rtk-mala": 100_000, "rtk-hmc": 100_000}
CHAINS_CUT, FLOORS = 20_000, 8
# Inner proposals per stage by the calls of a run: the more there are to spend, the longer a chain
# runs at one level, and the more its law is that which the rule leaves unchanged.
INNER = {32: 2, 128: 4, 512: 12}
BOUND = 1.1  # on the distance over the floor, at the most calls
RATIO_MIN = (
    0.005  # of the last data prediction, which narrows a mode of .1 by an eighth of a percent
)
RULES = ("trapezoid", "simpson", "energy")
SOLVERS: dict[str, dict[str, float]] = {
    "rtk-harmonic-mala": {"window_low": 0.02, "window_high": 3.0},  # where the modes are told apart
    "rtk-mala": {"tau": 0.6},
    "rtk-hmc": {"leapfrog": 2},
}


class Line:
    """The mixture on a line, with its model and energy in float32, mode after mode.

    On 3e5 chains of one number that is 20 times as fast as `GaussianMixture.model`, which is for
    any dimension, and in which a run would spend most of its time.
    """

    def __init__(self) -> None:
        self._path = get_path(PATH)

    def _modes(self, level: Tensor) -> tuple[float, list[tuple[float, float, float]]]:
        """alpha, and (log of the height, centre, variance) of each mode at the level."""
        at = float(level[0])
        alpha, sigma = float(self._path.alpha(at)), float(self._path.sigma(at))
        modes = []
        for centre, std, weight in zip(CENTRES, STDS, WEIGHTS, strict=True):
            variance = alpha**2 * std**2 + sigma**2
            modes.append((math.log(weight) - 0.5 * math.log(variance), alpha * centre, variance))
        return alpha, modes

    def model(self, x: Tensor, level: Tensor, condition: Any) -> Tensor:
        """E[x0 | x] of x `[B, d]`, each coordinate a draw of its own."""
        alpha, modes = self._modes(level)
        logs = [log - (x - centre) ** 2 / (2 * v) for log, centre, v in modes]
        top = torch.maximum(torch.maximum(logs[0], logs[1]), logs[2])
        shares = [(log - top).exp_() for log in logs]
        parts = zip(shares, CENTRES, STDS, modes, strict=True)
        made = sum(w * (c + alpha * s**2 / v * (x - alpha * c)) for w, c, s, (_, _, v) in parts)
        return made / (shares[0] + shares[1] + shares[2])

    def energy(self, x: Tensor, level: Tensor, condition: Any) -> Tensor:
        """-log density of x `[B, d]` at the level up to a constant, `[B]`."""
        _, modes = self._modes(level)
        logs = [log - (x - centre) ** 2 / (2 * v) for log, centre, v in modes]
        return -torch.logaddexp(torch.logaddexp(logs[0], logs[1]), logs[2]).sum(1)


def target() -> GaussianMixture:
    """The mixture, for exact draws."""
    means, stds = torch.tensor(CENTRES)[:, None], torch.tensor(STDS)[:, None]
    return GaussianMixture(means, stds.double() ** 2, torch.tensor(WEIGHTS))


def inner_edges() -> np.ndarray:
    """The edges between bins of equal mass, by bisection on the distribution function."""
    share = np.arange(1, BINS) / BINS
    low, high = np.full(BINS - 1, -4.0), np.full(BINS - 1, 4.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = distribution(middle) < share
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


def distribution(x: np.ndarray) -> np.ndarray:
    """P(target <= x)."""
    parts = zip(CENTRES, STDS, WEIGHTS, strict=True)
    erf = np.vectorize(math.erf)
    return sum(w / 2 * (1 + erf((x - c) / (s * math.sqrt(2)))) for c, s, w in parts)


def total_variation(x: Tensor, edges: np.ndarray) -> float:
    """Between the law of the bins' counts and equal masses."""
    found = np.bincount(np.searchsorted(edges, x.double().numpy().ravel()), minlength=BINS)
    return float(0.5 * np.abs(found / x.numel() - 1 / BINS).sum())


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


def floors(chains: int, seed: int, edges: np.ndarray) -> list[float]:
    """The distance of exact draws, several times."""
    generator = torch.Generator().manual_seed(seed)
    return [total_variation(target().sample(chains, generator), edges) for _ in range(FLOORS)]


def run(seed: int, cut: bool, progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """The distance of every solver and rule at 32, 128 and 512 calls.

    Args:
        seed: of the chains and of the exact draws.
        cut: one solver with 20,000 chains, at 32 and 512 calls, in some seconds.
        progress: is told what comes next.

    Returns:
        Plain numbers: `floors`, by number of chains the mean and deviation (`std`) of the distances
        of exact draws; `rows`, of each the solver, its rule `accept`, `chains`, calls allowed and
        made, inner proposals per stage, share accepted, total variation `tv`, and that
        `over_floor`; `bound`, and `met`: of each solver whether Simpson's rule and the energies
        keep to the bound at the most calls, and how far off the trapezoid is.
    """
    chains = {"rtk-hmc": CHAINS_CUT} if cut else CHAINS
    edges = inner_edges()
    exact = {count: np.array(floors(count, seed, edges)) for count in set(chains.values())}
    rows = []
    for solver, count in chains.items():
        for rule in RULES:
            for calls in [min(INNER), max(INNER)] if cut else INNER:
                if progress is not None:
                    progress(f"{solver}, {rule}, {calls} calls")
                x, row = draw(solver, rule, calls, count, seed)
                tv = total_variation(x, edges)
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
    lines = [
        f"Total variation on a line over that of as many exact draws, the floor: {floors}.",
        "",
        f"| solver | accept | chains | {' | '.join(f'{b} calls' for b in budgets)} | accepted |",
        "|---" * (len(budgets) + 4) + "|",
    ]
    for solver, rule in dict.fromkeys((r["solver"], r["accept"]) for r in found["rows"]):
        cells = [f"{over[solver, rule, budget]['over_floor']:.2f}" for budget in budgets]
        last = over[solver, rule, budgets[-1]]
        cells = [f"`{solver}`", rule, f"{last['chains']:,}", *cells, f"{last['acceptance']:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
