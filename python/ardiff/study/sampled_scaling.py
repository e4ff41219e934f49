"""Calls to an accuracy where only samples tell: solvers that accept or reject, and a curve.

**Adjusted solvers over d and K.** The target is that of :mod:`ardiff.study.scaling`: variance 1
along half of the axes, 1 / 16 along the others. A decision couples the axes, so that the law is no
Gaussian; measured is the KL of the Gaussian with the samples' second moments, pooled over axes of
one variance, which is at most that of the law itself. Exact draws have a KL of about 1 / B for B
chains, the floor. Trapezoidal energies are exact here.

**A curve.** A ring of modes of deviation s on the unit circle of a plane in d dimensions: for small
s no Hessian is bounded. Measured are the mean squares of the distance from the circle, in the plane
and normal to it, over those of exact draws; 1 is right.

**Modes.** The mixture on a line of :mod:`ardiff.study.adjusted`: KL between bins of equal mass,
less that of exact draws. Whether calls grow there as on Gaussian data.
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
from .adjusted import BINS, RATIO_MIN, Line, inner_edges
from .curves import PATH, crossing, exponent, growth_table, power_law

CURVATURE, EPS = 16, 0.1
ADJUSTED: dict[str, list[dict[str, Any]]] = {
    "rtk-mala": [{"inner": 1}, {"inner": 4}, {"inner": 16}],
    "rtk-hmc": [{"inner": 1}, {"inner": 4}],
}
DIMS, STEPS = (2, 8, 32, 128), (16, 32, 64, 128, 256, 512, 1024)
# The sources' exponents, to logarithms: calls grow as log(1 / eps).
CLAIMS = {"rtk-mala": {"d": 2.0, "1/eps": 0.0, "K": 1.0}}
ACCURACIES = (0.4, 0.2, 0.1, 0.05, 0.025)  # at the least d
RING, RING_CHAINS = ("ddpm", "ddim", "dpmpp-2m", "rtk-harmonic"), 4000
RING_PLACES = ((4, 0.1), (32, 0.1), (4, 0.025), (32, 0.025))  # d, s
RING_STEPS = (8, 12, 16, 24, 32, 48, 64, 96, 128)
RING_BOUND = 0.1
LINE = ("ddpm", "ddpm-ei", "rtk-uld", "dpum", "rtk-harmonic", "ddim", "dpmpp-2m", "unipc")
LINE_STEPS, LINE_CHAINS = (8, 16, 32, 64, 128), 100_000
PRODUCT: dict[str, list[dict[str, Any]]] = {
    "rtk-mala": [{"inner": 2}, {"inner": 8}],
    "rtk-hmc": [{"inner": 1}, {"inner": 4}],
}
PRODUCT_DIMS = (1, 4, 16, 64)
LINE_LEAST = 50  # over the chains: nine deviations of the KL of exact draws, told from 0


def chains_of(dim: int, cut: bool) -> int:
    """Chains: more where there are fewer dimensions, which must be the more accurate."""
    return max(1024, (2**13 if cut else 2**15) // dim)


def moments_kl(x: Tensor) -> float:
    """KL of the Gaussian of the samples' second moments from the target, for `[B, d]`."""
    half = x.shape[1] // 2
    total = 0.0
    for part, variance in ((x[:, :half], 1.0), (x[:, half:], 1 / CURVATURE)):
        ratio = float(part.double().square().mean()) / (variance)
        total += part.shape[1] / 2 * (ratio - 1 - math.log(ratio))
    return total


def gaussian_model(dim: int) -> Callable[[Tensor, Tensor, Any], Tensor]:
    """The exact score model of the target on the Ornstein-Uhlenbeck path."""
    variance = torch.ones(dim)
    variance[dim // 2 :] = 1 / CURVATURE

    def model(x: Tensor, level: Tensor, condition: Any) -> Tensor:
        kept = torch.exp(-2 * level[:1])
        return -x / (kept * variance + 1 - kept)

    return model


def adjusted_errors(solver: str, own: dict, dim: int, cut: bool, seed: int) -> list[list[float]]:
    """[calls made, KL of the moments] for rising calls, until no patch can ask for less."""
    rows: list[list[float]] = []
    for steps in STEPS[: 4 if cut else None]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AcceptanceWarning)
            try:
                x, stats = sample(
                    gaussian_model(dim), (chains_of(dim, cut), dim), PATH, "score", solver, steps,
                    seed=seed, ratio_min=0.01, return_stats=True, **own,
                )  # fmt: skip
            except ValueError:  # so many inner steps do not fit
                continue
        rows.append([stats.calls, moments_kl(x)])
        if rows[-1][1] < 2 * EPS**2 * dim / DIMS[-1] / 4:
            break
    return rows


def fewest(curves: list[list[list[float]]], bound: float) -> float | None:
    """The fewest calls from which on a setting's error is at most `bound`."""
    reached = [crossing(*zip(*rows, strict=True), bound) for rows in curves if rows]
    return min((calls for calls in reached if calls is not None), default=None)


def ring(dim: int, std: float) -> GaussianMixture:
    """Modes on the unit circle, a deviation apart: without gaps that a sampler could see."""
    count = math.ceil(2 * math.pi / std)
    angle = torch.arange(count, dtype=torch.float64) * 2 * math.pi / count
    means = torch.zeros(count, dim, dtype=torch.float64)
    means[:, 0], means[:, 1] = angle.cos(), angle.sin()
    return GaussianMixture(means, std**2)


def off_circle(x: Tensor) -> Tensor:
    """Mean squares of the distance from the circle in the plane of the first two coordinates, and
    of the coordinates normal to the plane, float64 `[2]`."""
    x = x.double()
    radial = x[:, :2].norm(dim=1) - 1
    return torch.stack([radial.square().mean(), x[:, 2:].square().mean()])


def ring_calls(solver: str, dim: int, std: float, seed: int) -> tuple[float | None, float]:
    """Calls until both mean squares are within a tenth of exact draws' to stay, and what is
    left."""
    target = ring(dim, std)
    exact = off_circle(target.sample(100_000, torch.Generator().manual_seed(seed)))
    calls, errors = [], []
    for steps in RING_STEPS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # few stages miss rtk-harmonic's window
            x, stats = sample(
                target.model(PATH, "sample"), (RING_CHAINS, dim), PATH, "sample", solver, steps,
                seed=seed, ratio_min=std / 10, return_stats=True,
            )  # fmt: skip
        calls.append(stats.calls)
        errors.append(float((off_circle(x) / exact - 1).abs().max()))
        if len(errors) > 1 and max(errors[-2:]) < RING_BOUND / 2:
            break
    return crossing(calls, errors, RING_BOUND), errors[-1]


def line_kl(x: Tensor) -> float:
    """KL of the bins' counts, of all numbers of x, from equal masses, less that of exact draws."""
    counts = np.bincount(np.searchsorted(inner_edges(), x.double().numpy().ravel()), minlength=BINS)
    share = counts[counts > 0] / counts.sum()
    return float(np.sum(share * np.log(share * BINS)) - (BINS - 1) / (2 * counts.sum()))


def line_growth(solver: str, chains: int, seed: int) -> dict[str, Any]:
    """`calls`, their `kl`, and the `fit` of the calls as a power of 1 / eps = (2 / KL)^(1/2) over
    those whose KL is told from 0."""
    calls, kl = [], []
    for steps in LINE_STEPS:
        x, stats = sample(
            Line().model, (chains, 1), PATH, "sample", solver, steps, seed=seed,
            ratio_min=RATIO_MIN, return_stats=True,
        )  # fmt: skip
        calls.append(stats.calls)
        kl.append(line_kl(x))
    told = [n if error > LINE_LEAST / chains else None for n, error in zip(calls, kl, strict=True)]
    fit = power_law([(2 / max(error, 1e-12)) ** 0.5 for error in kl], told, seed)
    return {"calls": calls, "kl": kl, "fit": fit and fit._asdict()}


def product_errors(solver: str, own: dict, dim: int, values: int, seed: int) -> list[list[float]]:
    """[calls made, KL of `dim` independent coordinates that each have the law of all] on a product
    of mixtures, accepted by energies, until the bound is well met."""
    rows: list[list[float]] = []
    line = Line()
    for steps in STEPS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AcceptanceWarning)
            try:
                x, stats = sample(
                    line.model, (values // dim, dim), PATH, "sample", solver, steps, seed=seed,
                    ratio_min=RATIO_MIN, accept="energy", energy_fn=line.energy,
                    return_stats=True, **own,
                )  # fmt: skip
            except ValueError:  # so many inner steps do not fit
                continue
        rows.append([stats.calls, dim * line_kl(x)])
        if rows[-1][1] < EPS**2:
            break
    return rows


def product_growth(solver: str, cut: bool, seed: int) -> dict[str, Any]:
    """`x`, `calls` and `fit` over d of an adjusted solver on a product of mixtures."""
    dims, values = (PRODUCT_DIMS[:2], LINE_CHAINS // 10) if cut else (PRODUCT_DIMS, LINE_CHAINS)
    calls = [
        fewest(
            [product_errors(solver, own, d, values, seed) for own in PRODUCT[solver]], 2 * EPS**2
        )
        for d in dims
    ]
    fit = power_law(dims, calls, seed)
    return {"x": list(dims), "calls": calls, "fit": fit and fit._asdict()}


def growths(curves: dict[int, list[list[list[float]]]], seed: int) -> dict[str, dict[str, Any]]:
    """`x`, `calls` and `fit` over d; over 1 / eps at the least d; and over K patches of 128 / K
    dimensions, each allowed a K-th of the KL."""
    dims, whole, most = sorted(curves), 2 * EPS**2, DIMS[-1]
    patches = [most // dim for dim in reversed(dims)]
    each = [fewest(curves[most // k], whole / k) for k in patches]
    found = {
        "d": (dims, [fewest(curves[dim], whole) for dim in dims]),
        "1/eps": (
            [1 / eps for eps in ACCURACIES],
            [fewest(curves[dims[0]], 2 * eps**2) for eps in ACCURACIES],
        ),
        "K": (patches, [c and c * k for c, k in zip(each, patches, strict=True)]),
    }
    fits = {name: power_law(x, calls, seed) for name, (x, calls) in found.items()}
    return {
        name: {"x": x, "calls": calls, "fit": fits[name] and fits[name]._asdict()}
        for name, (x, calls) in found.items()
    }


def run(seed: int, cut: bool, progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """All measurements, as plain numbers.

    Returns:
        `adjusted`: by ``d``, ``1/eps`` and ``K`` and solver as :func:`growths`; `errors`, by solver
        and d the calls and KL of every run, a list per setting; `ring`: of each `solver`, `d` and
        width `s` the `calls` until both mean squares are right to a tenth, and the `error` left at
        the end; `line` and `product`, by solver as :func:`line_growth` and
        :func:`product_growth`. None: not with the calls tried.
    """
    adjusted: dict[str, Any] = {"d": {}, "1/eps": {}, "K": {}}
    errors: dict[str, Any] = {}
    for solver, settings in ADJUSTED.items():
        curves = {}
        for dim in DIMS[:2] if cut else DIMS:
            if progress is not None:
                progress(f"{solver} at d = {dim}")
            curves[dim] = [adjusted_errors(solver, own, dim, cut, seed) for own in settings]
        for name, found in growths(curves, seed).items():
            adjusted[name][solver] = found
        errors[solver] = {str(dim): rows for dim, rows in curves.items()}
    rings = []
    for solver in RING[1:2] if cut else RING:
        for dim, std in RING_PLACES[:1] if cut else RING_PLACES:
            if progress is not None:
                progress(f"{solver} on a ring of width {std:g}, d = {dim}")
            calls_, left = ring_calls(solver, dim, std, seed)
            rings.append({"solver": solver, "d": dim, "s": std, "calls": calls_, "error": left})
    line = {}
    for solver in LINE[1:3] if cut else LINE:
        if progress is not None:
            progress(f"{solver} on a line")
        line[solver] = line_growth(solver, LINE_CHAINS // (4 if cut else 1), seed)
    product = {}
    for solver in list(PRODUCT)[1:] if cut else PRODUCT:
        if progress is not None:
            progress(f"{solver} on a product of mixtures")
        product[solver] = product_growth(solver, cut, seed)
    return {
        "adjusted": adjusted, "errors": errors, "ring": rings, "line": line, "product": product,
    }  # fmt: skip


def markdown(found: dict[str, Any]) -> str:
    """Tables over d, 1 / eps and K, and of the ring."""
    places = list(dict.fromkeys((row["d"], row["s"]) for row in found["ring"]))
    at = {(row["solver"], row["d"], row["s"]): row["calls"] for row in found["ring"]}
    head = " | ".join(f"d {d}, s {s:g}" for d, s in places)
    lines = [f"| calls on the ring | {head} |", "|---" * (len(places) + 1) + "|"]
    for solver in dict.fromkeys(row["solver"] for row in found["ring"]):
        cells = [at[solver, d, s] for d, s in places]
        shown = ["more" if c is None else f"{c:.0f}" for c in cells]
        lines.append(f"| `{solver}` | {' | '.join(shown)} |")
    tables = (growth_table(name, rows, CLAIMS) for name, rows in found["adjusted"].items())
    return "\n\n".join(
        [
            "Adjusted solvers, by the moments of samples (1/eps: at the least d; K: of 128 "
            "dimensions together):",
            *tables,
            "Both mean squares of the distance from a circle right to a tenth:",
            "\n".join(lines),
            "KL on a line, less that of exact draws, and the power of 1/eps by which calls grow:",
            _line_table(found["line"]),
            "Adjusted solvers on a product of such lines, by the law of all coordinates:",
            growth_table("d", found["product"], CLAIMS),
        ]
    )


def _line_table(line: dict[str, Any]) -> str:
    head = " | ".join(f"{steps} calls" for steps in LINE_STEPS)
    lines = [f"| KL on a line | {head} | exponent |", "|---" * (len(LINE_STEPS) + 2) + "|"]
    for solver, row in line.items():
        cells = [f"`{solver}`", *(f"{kl:.1e}" for kl in row["kl"]), exponent(row["fit"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
