"""Calls to an accuracy where only samples tell: solvers that accept or reject, and modes.

**Adjusted solvers over d and K.** The target is that of :mod:`ardiff.study.scaling`: variance 1
along half of the axes, 1 / 16 along the others. A decision couples the axes, so that the law is no
Gaussian; measured is the KL of the Gaussian with the samples' second moments, pooled over axes of
one variance, which is at most that of the law itself. Exact draws have a KL of about 1 / B for B
chains, the floor. Trapezoidal energies are exact here.

**Modes.** The mixture of :mod:`ardiff.study.line`: whether calls grow there as on Gaussian data.
Adjusted solvers draw products of it over d too, accepted by energies.

Beside them, data along a curve: :mod:`ardiff.study.ring`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..loop.stats import AcceptanceWarning
from ..sampling import sample
from . import ring
from .curves import PATH, crossing, exponent, fitted, growth_table
from .line import RATIO_MIN, Line, kl_of_bins
from .text import table

CURVATURE, EPS = 16, 0.1
ADJUSTED: dict[str, list[dict[str, Any]]] = {
    "rtk-mala": [{"inner": 1}, {"inner": 4}, {"inner": 16}],
    "rtk-hmc": [{"inner": 1}, {"inner": 4}],
}
DIMS, STEPS = (2, 8, 32, 128), (16, 32, 64, 128, 256, 512, 1024)
# The sources' exponents, to logarithms: calls grow as log(1 / eps).
CLAIMS = {"rtk-mala": {"d": 2.0, "1/eps": 0.0, "K": 1.0}}
ACCURACIES = (0.4, 0.2, 0.1, 0.05, 0.025)  # at the least d
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
        kl.append(kl_of_bins(x))
    told = [n if error > LINE_LEAST / chains else None for n, error in zip(calls, kl, strict=True)]
    fit = fitted([(2 / max(error, 1e-12)) ** 0.5 for error in kl], told, seed)["fit"]
    return {"calls": calls, "kl": kl, "fit": fit}


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
        rows.append([stats.calls, dim * kl_of_bins(x)])
        if rows[-1][1] < EPS**2:
            break
    return rows


def product_growth(solver: str, cut: bool, seed: int) -> dict[str, Any]:
    """`x`, `calls` and `fit` over d of an adjusted solver on a product of mixtures."""
    dims, values = (PRODUCT_DIMS[:2], LINE_CHAINS // 10) if cut else (PRODUCT_DIMS, LINE_CHAINS)
    curves = [
        [product_errors(solver, own, d, values, seed) for own in PRODUCT[solver]] for d in dims
    ]
    return fitted(dims, [fewest(each, 2 * EPS**2) for each in curves], seed)


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
    return {name: fitted(x, calls, seed) for name, (x, calls) in found.items()}


def run(seed: int, cut: bool) -> dict[str, Any]:
    """All measurements, as plain numbers.

    Returns:
        `adjusted`: by ``d``, ``1/eps`` and ``K`` and solver as :func:`growths`; `errors`, by solver
        and d the calls and KL of every run, a list per setting; `ring`, as
        :func:`ardiff.study.ring.run`; `line` and `product`, by solver as :func:`line_growth` and
        :func:`product_growth`. None: not with the calls tried.
    """
    adjusted: dict[str, Any] = {"d": {}, "1/eps": {}, "K": {}}
    errors: dict[str, Any] = {}
    for solver, settings in ADJUSTED.items():
        curves = {
            dim: [adjusted_errors(solver, own, dim, cut, seed) for own in settings]
            for dim in (DIMS[:2] if cut else DIMS)
        }
        for name, found in growths(curves, seed).items():
            adjusted[name][solver] = found
        errors[solver] = {str(dim): rows for dim, rows in curves.items()}
    chains = LINE_CHAINS // (4 if cut else 1)
    products = list(PRODUCT)[1:] if cut else PRODUCT
    return {
        "adjusted": adjusted,
        "errors": errors,
        "ring": ring.run(seed, cut),
        "line": {name: line_growth(name, chains, seed) for name in (LINE[1:3] if cut else LINE)},
        "product": {name: product_growth(name, cut, seed) for name in products},
    }


def markdown(found: dict[str, Any]) -> str:
    """Tables over d, 1 / eps and K, of the ring and of modes."""
    tables = (growth_table(name, rows, CLAIMS) for name, rows in found["adjusted"].items())
    return "\n\n".join([
        "Adjusted solvers, by the moments of samples (1/eps: at the least d; K: of 128 dimensions "
        "together):",
        *tables,
        "Both mean squares of the distance from a circle right to a tenth:",
        ring.markdown(found["ring"]),
        "KL on a line, less that of exact draws, and the power of 1/eps by which calls grow:",
        _line_table(found["line"]),
        "Adjusted solvers on a product of such lines, by the law of all coordinates:",
        growth_table("d", found["product"], CLAIMS),
    ])  # fmt: skip


def _line_table(line: dict[str, Any]) -> str:
    lines = [
        [f"`{solver}`", *(f"{kl:.1e}" for kl in row["kl"]), exponent(row["fit"])]
        for solver, row in line.items()
    ]
    return table(["KL on a line", *(f"{steps} calls" for steps in LINE_STEPS), "exponent"], lines)
