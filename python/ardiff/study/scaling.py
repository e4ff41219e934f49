"""How the model calls to an accuracy grow: with d, 1 / eps, the curvature L, patches and manifolds.

The accuracy is one that the theory speaks of: TV <= eps, by Pinsker's inequality KL <= 2 eps^2, of
the samples' law from the data's at the last level; W2 <= eps is asked beside it. On Gaussian data
the law of every solver that does not accept or reject is known exactly
(:mod:`ardiff.study.gaussian_law`), so that calls are no estimates. The data have d axes, half of
them of variance 1, the others of 1 / L. Each solver has the best setting of a list, for each
accuracy anew (:data:`ardiff.study.curves.METHODS`).

KL of a product of laws is a sum, so that here only d / eps^2 counts: calls that grow as (d /
eps^2)^q grow as d^q and as eps^-2q. The claims q = 1 (DDPM, d / eps^2) and q = 1 / 2 (RTK-ULD and
DPUM, d^1/2 / eps) are of this kind. Solvers that accept or reject, whose axes are coupled by the
decision, are measured by samples in :mod:`ardiff.study.sampled_scaling`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import sampled_scaling
from .curves import (
    METHODS,
    VARIANCES,
    Curve,
    calls_to,
    curves,
    fitted,
    growth_table,
    target_law,
)
from .gaussian_law import Law

TITLE = "Calls to an accuracy"
EPS, DIM, CURVATURE = 0.1, 16, 16
DIMS = (2, 4, 8, 16, 32, 64, 128, 256)
ACCURACIES = (0.4, 0.2, 0.1, 0.05, 0.025, 0.0125)
CURVATURES = (4, 16, 64, 256, 1024)
CURVED_DIM = 2  # of the growth in L, which on a uniform grid takes many calls
PATCHES = (1, 2, 4, 8, 16, 32)
PATCH_DIM = 64  # of all patches together
AMBIENT, INTRINSIC = (4, 16, 64, 256, 1024), (4, 16, 64, 256)
MOST, MOST_CUT = 1536, 192  # calls, on the log-SNR grid
# The sources' rows: calls to TV <= eps, to logarithms.
CLAIMS = {
    "ddpm-ei": {"d": 1.0, "1/eps": 2.0, "L": 2.0, "K": 1.0},
    "dpum": {"d": 0.5, "1/eps": 1.0, "L": 2.0, "K": 1.0},
    "rtk-uld": {"d": 0.5, "1/eps": 1.0, "L": 2.0, "K": 1.0},
}
# On a grid even in the time of the process, the one that proofs for smooth data use
UNIFORM: dict[str, list[dict[str, Any]]] = {
    "ddpm-ei": [{}],
    "ddpm": [{}],
    "ddim": [{}],
    "dpum": [{"predictor": 4, "tau": 0.5}, {"predictor": 1, "tau": 1.0}],
    "rtk-uld": [{"inner": 1, "tau": 0.6}, {"inner": 4, "tau": 0.25}],
}
MOST_UNIFORM = 4096


def axis(variance: float) -> int:
    """The place of a variance among the axes."""
    return VARIANCES.index(variance)


def kl_of(counts: dict[float, float], distance: Callable = Law.kl) -> Callable[[Law], float]:
    """KL, or the square of W2 by ``Law.w2``, from the target of centred data with so many axes of
    each variance."""
    target, at = target_law(), [axis(variance) for variance in counts]
    target = Law(0 * target.mean, target.variance)
    number = np.array(list(counts.values()))

    def kl(law: Law) -> float:
        return float(number @ distance(Law(0 * law.mean, law.variance), target)[at])

    return kl


def bound(eps: float) -> float:
    """KL that by Pinsker's inequality makes TV at most eps."""
    return 2 * eps**2


def patched_kl(patches: int, dim: int) -> Callable[[Law], float]:
    """KL of patches drawn one after another, each given those before, from the exact chain.

    Each of dim / patches coordinates is a stationary chain over the patches, x_1 ~ N(0, 1 / 4) and
    x_(k+1) ~ N(a x_k, 1 / 16) with a^2 = 3 / 4. KL of the whole is the sum of those of the
    conditional laws, each averaged over what the sampler makes of the past: a patch of mean a x_k
    ends as N(m a x_k, v), m the law's mean for data of mean 1.
    """
    target, first, rest = target_law(), axis(1 / 4), axis(1 / 16)

    def kl(law: Law) -> float:
        centred = Law(0 * law.mean, law.variance).kl(Law(0 * law.mean, target.variance))
        spread, total = law.variance[first], centred[first]
        mean, variance = law.mean[rest], law.variance[rest]
        for _ in range(patches - 1):
            shift = (mean - target.mean[rest]) ** 2 * 0.75 * spread / target.variance[rest]
            total += centred[rest] + 0.5 * shift
            spread = mean**2 * 0.75 * spread + variance
        return float(dim / patches * total)

    return kl


def halves(dim: float, curvature: float) -> dict[float, float]:
    """Axes of the standard target."""
    return {1.0: dim / 2, 1 / curvature: dim / 2}


Experiment = dict[float, tuple[Callable[[Law], float], float, float]]


def experiments() -> dict[str, Experiment]:
    """By name and x: the error of a law, its bound, and the factor from a run's calls to all."""
    whole = bound(EPS)
    widths = [v for v in VARIANCES if 0 < v < 1]
    return {
        "d": {d: (kl_of(halves(d, CURVATURE)), whole, 1) for d in DIMS},
        "1/eps": {1 / e: (kl_of(halves(DIM, CURVATURE)), bound(e), 1) for e in ACCURACIES},
        "1/eps of W2": {
            1 / e: (kl_of(halves(DIM, CURVATURE), Law.w2), e**2, 1) for e in ACCURACIES
        },
        "L": {c: (kl_of(halves(CURVED_DIM, c)), whole, 1) for c in CURVATURES},
        "K": {k: (patched_kl(k, PATCH_DIM), whole, k) for k in PATCHES},
        "ambient d": {d: (kl_of({1.0: 2, 0.0: d - 2}), whole, 1) for d in AMBIENT},
        "intrinsic d": {k: (kl_of({1.0: k, 0.0: AMBIENT[-1] - k}), whole, 1) for k in INTRINSIC},
        "1/width^2": {1 / v: (kl_of({1.0: 2, v: DIM - 2}), whole, 1) for v in widths},
    }


def growth(asked: Experiment, found: list[Curve], seed: int) -> dict[str, Any]:
    """The calls at each x, the settings that took them, and the exponent in x.

    Points at the fewest calls that a table was made of are lower bounds of accuracy, not of calls:
    the fit leaves them out.
    """
    least = min(point.calls for curve in found for point in curve.points)
    reached = [calls_to(found, error, limit) for error, limit, _ in asked.values()]
    factors = [factor for _, _, factor in asked.values()]
    calls = [None if r is None else r[0] * f for r, f in zip(reached, factors, strict=True)]
    told = [
        c if r is not None and r[0] > least else None
        for c, r in zip(calls, reached, strict=True)
    ]  # fmt: skip
    settings = [None if r is None else r[1] for r in reached]
    shown = [None if c is None else round(c, 1) for c in calls]
    return fitted(list(asked), told, seed) | {"calls": shown, "settings": settings}


def run(seed: int, cut: bool) -> dict[str, Any]:
    """Every experiment for every solver.

    Args:
        seed: of the bootstrap and of what is measured by samples; the exact laws need none.
        cut: fewer settings and at most 192 calls, in some seconds.

    Returns:
        Plain numbers. `exact`: by grid (``log-snr``, ``uniform``), experiment and solver its `x`,
        `calls` (None where no setting comes to the accuracy with the calls tried), `settings` and
        `fit` (exponent, low, high, points; None with fewer than three points). `claims`: the
        sources' exponents. `sampled`: of :mod:`ardiff.study.sampled_scaling`.
    """
    asked = experiments()
    plans = [("log-snr", METHODS, MOST_CUT if cut else MOST, list(asked))]
    if not cut:
        plans.append(("uniform", UNIFORM, MOST_UNIFORM, ["d", "1/eps", "L"]))
    exact: dict[str, Any] = {}
    for grid, methods, most, names in plans:
        exact[grid] = {name: {} for name in names}
        for solver, settings in methods.items():
            found = curves(solver, grid, most, settings[:: 6 if cut else 1])
            for name in names:
                exact[grid][name][solver] = growth(asked[name], found, seed)
    sampled = sampled_scaling.run(seed, cut)
    return {"eps": EPS, "claims": CLAIMS, "exact": exact, "sampled": sampled}


def markdown(found: dict[str, Any]) -> str:
    """A table per experiment and grid, those of the samples after them."""
    parts = [
        f"Calls to TV <= {found['eps']:g} (KL <= 2 eps^2) on Gaussian data, exact; exponents by "
        "least squares with 95% intervals of a bootstrap over the points."
    ]
    for grid, by_name in found["exact"].items():
        for name, solvers in by_name.items():
            parts += [
                f"Grid {grid}, growth in {name}:",
                growth_table(name, solvers, found["claims"]),
            ]
    parts.append(sampled_scaling.markdown(found["sampled"]))
    return "\n\n".join(parts)
