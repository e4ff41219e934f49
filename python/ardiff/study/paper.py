"""The reverse transition kernel papers' experiment: as its authors ran it, and right.

Huang et al. 2024 (arXiv 2405.16387) compare DDPM with ULA, ULD and MALA on reverse transition
kernels, by the marginal accuracy of 5,000 samples of four mixtures in ten dimensions. The mode
``paper`` has their samplers, settings, metric and faults; its rows stand beside the published
figures, and a table mends one fault at a time. The mode ``correct`` has the samplers without the
faults, the solvers of this package and those that a user would run instead, and measures 1 - TV.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

import torch

from ._paper import rivals, samplers
from ._paper.accuracy import Marginals, authors_accuracy
from ._paper.published import CALLS, METHODS, SETTINGS, published
from ._paper.report import markdown
from ._paper.score import RoundMixture
from .intervals import interval
from .targets import PAPER

__all__ = ["MODES", "markdown", "run"]

TITLE = "The reverse transition kernel papers' experiment"
MODES = ("paper", "correct")
SAMPLES, SEEDS = 5000, 4
TRUTH = 200_000  # exact draws that the authors' histograms are compared with
FLOOR_DRAWS = 4
FEW_CALLS = (25, 105)  # of the cut, and of the table of faults
CORRECT_CALLS = (25, 105, 205)  # beyond, all but DDPM on the authors' grid are at the floor

Row = dict[str, Any]


class Target:
    """A target with what the accuracies compare samples with."""

    def __init__(self, name: str) -> None:
        self.name, self.mixture = name, PAPER[name]()
        generator = torch.Generator().manual_seed(0)
        self.truth = self.mixture.sample(TRUTH, generator).float()
        self.exact = [self.mixture.sample(SAMPLES, generator).float() for _ in range(FLOOR_DRAWS)]
        self.marginals = Marginals(self.mixture)
        self.floor = fmean(map(self.marginals.accuracy, self.exact))

    def authors(self, method: str, x: torch.Tensor) -> float:
        """The authors' accuracy, with the histograms that they have for this method."""
        setting = SETTINGS[self.name][method]
        return authors_accuracy(x, self.truth, setting.bins, setting.reach)

    def authors_floor(self, method: str) -> float:
        return fmean(self.authors(method, x) for x in self.exact)

    def draw(self, method: str, calls: int, seed: int, faults: samplers.Faults) -> samplers.Drawn:
        """Samples of the authors' sampler."""
        floor = SETTINGS[self.name][method].floor if faults.faded_score else 0.0
        score = RoundMixture(self.mixture, floor)
        return samplers.draw(self.name, score, method, calls, SAMPLES, seed, faults)


def run(
    seed: int,
    cut: bool,
    modes: Sequence[str] = MODES,
    targets: Sequence[str] = tuple(PAPER),
) -> dict[str, Any]:
    """Runs the experiment; four sampling seeds from `seed` on, one with `cut`.

    Args:
        seed: of the sampling noise, 0 or more.
        cut: a run of seconds: one seed, 25 and 105 calls (``correct``: 25).
        modes: of :data:`MODES`.
        targets: of :data:`~ardiff.study.targets.PAPER`.

    Returns:
        Plain data. ``rows``: target, method, calls, mode, `accuracy` (a mean over the seeds), its
        standard `error`, its `floor`, which is that of exact draws, the `published` figure or None,
        the score calls really `made`, and `tv_accuracy`, 1 - TV, whatever the mode. In ``paper``
        `accuracy` is the authors', in ``correct`` it is 1 - TV. ``faults``: target, method, calls,
        what is `mended`, the authors' `accuracy`, `tv_accuracy`, and the `acceptance` of MALA's
        last stage. Mended is "none", "all", one of
        :class:`~ardiff.study._paper.samplers.Faults`, "both of the ratio" of MALA, or of DDPM
        "grid" (even in log-SNR) or "histograms" (those of the other methods).
        ``gains``: of a method over a DDPM, paired by seed, with 95% interval `low` to `high`.

    Raises:
        ValueError: a negative seed, or modes or targets that are unknown or none.

    Example:
        >>> from ardiff.study.paper import run
        >>> found = run(0, cut=True, modes=["correct"], targets=["chessboard"])
        >>> at = {row["method"]: row["accuracy"] for row in found["rows"]}
        >>> at["rtk-harmonic"] > at["ddpm, best grid"] + 0.03 > at["rtk-uld"] + 0.03
        True
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be an integer of 0 or more, got {seed!r}")
    for what, given, known in (("modes", modes, MODES), ("targets", targets, tuple(PAPER))):
        if not given or set(given) - set(known):
            raise ValueError(f"{what} must be some of {', '.join(known)}, got {list(given)}")
    seeds = range(seed, seed + (1 if cut else SEEDS))
    found = {"seed": seed, "seeds": len(seeds), "samples": SAMPLES, "cut": cut}
    found |= {"rows": [], "faults": [], "gains": []}
    for target in map(Target, targets):
        for mode in modes:
            rows = (_paper_rows if mode == "paper" else _correct_rows)(target, seeds, cut)
            found["gains"] += _gains(rows)
            found["rows"] += [_summary(row) for row in rows]
        if "paper" in modes:
            found["faults"] += _fault_rows(target, seeds, cut)
    return found


def _paper_rows(target: Target, seeds: Sequence[int], cut: bool) -> list[Row]:
    rows = []
    for method in METHODS:
        floor = target.authors_floor(method)
        for calls in FEW_CALLS if cut else CALLS:
            drawn = [target.draw(method, calls, seed, samplers.PUBLISHED) for seed in seeds]
            each = [target.authors(method, x) for x, *_ in drawn]
            row = _row(target, method, calls, "paper", each, drawn)
            rows.append(row | {"floor": floor, "published": published(target.name, method, calls)})
    return rows


def _correct_rows(target: Target, seeds: Sequence[int], cut: bool) -> list[Row]:
    rows = []
    for calls in FEW_CALLS[:1] if cut else CORRECT_CALLS:
        for method in METHODS[1:]:
            drawn = [target.draw(method, calls, seed, samplers.MENDED) for seed in seeds]
            each = [target.marginals.accuracy(x) for x, *_ in drawn]
            rows.append(_row(target, method, calls, "correct", each, drawn))
        for name, rival in rivals.RIVALS.items():
            best = None
            for grid in rival.grids:
                drawn = [
                    rivals.draw(target.mixture, rival, grid, calls, SAMPLES, seed) for seed in seeds
                ]
                each = [target.marginals.accuracy(x) for x, *_ in drawn]
                if best is None or fmean(each) > fmean(best["each"]):
                    best = _row(target, name, calls, "correct", each, drawn) | {"grid": grid}
            rows.append(best)
    return rows


def _row(target: Target, method: str, calls: int, mode: str, each, drawn) -> Row:
    tv = fmean(target.marginals.accuracy(x) for x, *_ in drawn)
    return {
        "target": target.name, "method": method, "calls": calls, "mode": mode, "each": each,
        "floor": target.floor, "published": None, "made": drawn[0][1], "tv_accuracy": tv,
    }  # fmt: skip


def _summary(row: Row) -> Row:
    each = row.pop("each")
    error = stdev(each) / math.sqrt(len(each)) if len(each) > 1 else None
    return {**row, "accuracy": fmean(each), "error": error}


def _fault_rows(target: Target, seeds: Sequence[int], cut: bool) -> list[Row]:
    """The authors' accuracy as published, without one fault at a time, and without any."""
    rows = []
    for method in METHODS:
        cases = {"none": samplers.PUBLISHED, "all": samplers.MENDED}
        cases |= {name: samplers.PUBLISHED.without(name) for name in samplers.CONCERNS[method]}
        if method.startswith("MALA"):  # each of the two hides the other
            cases["both of the ratio"] = samplers.PUBLISHED.without(*samplers.RATIO)
        for calls in FEW_CALLS[:1] if cut else FEW_CALLS:
            found = {
                name: [target.draw(method, calls, seed, faults) for seed in seeds]
                for name, faults in cases.items()
            }
            if method == "DDPM":
                found["grid"] = [
                    rivals.draw(target.mixture, rivals.DDPM, "log-snr", calls, SAMPLES, seed)
                    for seed in seeds
                ]
            names = {"target": target.name, "method": method, "calls": calls}
            for mended, drawn in found.items():
                figures = {
                    "accuracy": fmean(target.authors(method, x) for x, *_ in drawn),
                    "tv_accuracy": fmean(target.marginals.accuracy(x) for x, *_ in drawn),
                    "acceptance": fmean(each.acceptance for each in drawn)
                    if method.startswith("MALA")
                    else None,
                }
                rows.append({**names, "mended": mended, **figures})
            if method == "DDPM":
                same = fmean(target.authors("MALA", x) for x, *_ in found["none"])
                rows.append({**rows[-len(found)], "mended": "histograms", "accuracy": same})
    return rows


def _gains(rows: Sequence[Row]) -> list[Row]:
    """Of every other method over each DDPM, at equal calls and seeds."""
    found = []
    for base in [row for row in rows if row["method"].lower().startswith("ddpm")]:
        for row in rows:
            if row["calls"] != base["calls"] or row["method"].lower().startswith("ddpm"):
                continue
            apart = [a - b for a, b in zip(row["each"], base["each"], strict=True)]
            gain = interval(apart)
            ends = gain[1:] if len(apart) > 1 else (None, None)
            names = {key: row[key] for key in ("target", "method", "calls", "mode")}
            figures = {"gain": gain.value, "low": ends[0], "high": ends[1]}
            found.append({**names, "over": base["method"], **figures})
    return found
