"""What `ardiff.calibrate` does for the acceptance of a solver, and for its samples.

    python -m benchmarks.calibration_table acceptance [--dim D ...]
    python -m benchmarks.calibration_table quality [SOLVER ...] [--calls N ...]

print the tables of docs/calibrate.md, the first in a minute or two of one core, the second in a few
for each number of calls. Acceptance is that of fresh samples, with 60 calls. Quality is the sliced
W2 of `bench_quality` on the nine mixtures 101 to 109 over its floor, and the ratio of calibrated to
default settings, each the geometric mean over mixtures and four noise seeds; the range is that of
the seeds. All run on the same noise. Solvers without a setting stand beside them.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch

import ardiff
from ardiff.data.mixture import GaussianMixture
from ardiff.study.intervals import geometric_mean

from .bench_quality import PATH, PREDICTION, Target, targets

LOW, HIGH = 0.4, 0.8  # the band of acceptance that is asked for
STEPS = 60
FRESH = {10: 400, 1000: 100, 16_384: 24}  # samples whose acceptance is measured
ADJUSTED = ("rtk-mala", "rtk-hmc")
CALIBRATED = ("rtk-uld", "rtk-baoab", "rtk-obabo", "rtk-ubu", *ADJUSTED)
BESIDE = ("rtk-harmonic", "ddpm")
NOISE_SEEDS = (0, 1, 2, 3)


def acceptance_targets(d: int) -> dict[str, GaussianMixture]:
    """By name, on each dimension the same kinds."""
    centres = torch.randn(6, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    zero, scales = torch.zeros(1, d), torch.logspace(-2, 0, d, dtype=torch.float64)
    return {
        "N(0, 1)": GaussianMixture(zero, 1.0),
        "N(0, .5^2)": GaussianMixture(zero, 0.25),
        "N(0, .01^2)": GaussianMixture(zero, 1e-4),
        "scales .01 to 1": GaussianMixture(zero, (scales**2)[None]),
        "6 modes of .05": GaussianMixture(centres, 0.05**2),
        "6 modes of .001": GaussianMixture(centres, 1e-6),
    }


def acceptance_rows(d: int) -> Iterator[list[str]]:
    """Calibrated, and with the default tau: mean, least and most of the stages, those in the band;
    then model calls and states of the calibration."""
    for name, mixture in acceptance_targets(d).items():
        model = mixture.model(PATH, PREDICTION)
        for solver in ADJUSTED:
            options = {"path": PATH, "prediction": PREDICTION, "steps": STEPS}
            found = ardiff.calibrate(model, d, solver=solver, **options)
            cells = []
            for given in ({"table": found.table}, {"solver": solver, **options}):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ardiff.AcceptanceWarning)
                    _, stats = ardiff.sample(
                        model, (FRESH.get(d, 100), d), seed=77, return_stats=True, **given
                    )
                rate = stats.expected_acceptance.nan_to_num().numpy()
                inside = int(((rate >= LOW) & (rate <= HIGH)).sum())
                ends = f"{rate.min():.2f} to {rate.max():.2f}"
                cells.append(f"{rate.mean():.2f} ({ends}; {inside} of {len(rate)})")
            yield [f"{d:,}", name, f"`{solver}`", *cells, f"{found.calls}, {found.states:,}"]


def quality_rows(calls: int, solvers: Sequence[str]) -> Iterator[list[str]]:
    """Distances over the floor, calibrated and default, and their ratio with its range."""
    floor = geometric_mean([target.floor for target in targets()])
    for solver in (*solvers, *BESIDE):
        default = np.array([[_draw(t, solver, calls, s) for t in targets()] for s in NOISE_SEEDS])
        cells = [f"{_over(default, floor):.2f}"]
        if solver in CALIBRATED:
            tables = [_calibrated(target, solver, calls) for target in targets()]
            pairs = list(zip(targets(), tables, strict=True))
            ours = np.array([
                [t.distance(ardiff.sample(
                    t.mixture.model(PATH, PREDICTION), (t.samples, t.mixture.means.shape[1]),
                    table=table, seed=seed,
                )) for t, table in pairs] for seed in NOISE_SEEDS
            ])  # fmt: skip
            ratio = np.exp(np.log(ours / default).mean(1))
            cells = [f"{_over(ours, floor):.2f}", *cells, f"{geometric_mean(ratio):.2f}"]
            cells.append(f"{ratio.min():.2f} to {ratio.max():.2f}")
        else:
            cells = ["", *cells, "", ""]
        yield [str(calls), f"`{solver}`", *cells]


def _over(distances: np.ndarray, floor: float) -> float:
    return geometric_mean(distances.ravel()) / floor


def _draw(target: Target, solver: str, calls: int, seed: int) -> float:
    return target.distance(target.draw(solver, calls, seed)[0])


def _calibrated(target: Target, solver: str, calls: int) -> ardiff.StepTable:
    mixture = target.mixture
    return ardiff.calibrate(
        mixture.model(PATH, PREDICTION), mixture.means.shape[1], path=PATH, prediction=PREDICTION,
        solver=solver, steps=calls, ratio_min=math.sqrt(float(mixture.variances.min())) / 10,
    ).table  # fmt: skip


HEADS = {
    "acceptance": ["d", "data", "solver", "calibrated", "default tau", "calls, states"],
    "quality": ["calls", "solver", "calibrated", "default", "ratio", "over four seeds"],
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure what a calibration does.")
    parser.add_argument("table", choices=HEADS)
    parser.add_argument("solvers", nargs="*", metavar="SOLVER", help="default: all it sets")
    parser.add_argument("--dim", type=int, nargs="+", default=sorted(FRESH), metavar="D")
    parser.add_argument("--calls", type=int, nargs="+", default=[16, 32, 64], metavar="N")
    asked = parser.parse_args(arguments)
    unknown = sorted(set(asked.solvers) - set(CALIBRATED))
    if unknown:
        parser.error(f"unknown solver {unknown[0]}; known: {', '.join(CALIBRATED)}")
    head = HEADS[asked.table]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    if asked.table == "acceptance":
        for d in asked.dim:
            for row in acceptance_rows(d):
                print(f"| {' | '.join(row)} |", flush=True)
        return
    for calls in asked.calls:
        for row in quality_rows(calls, asked.solvers or CALIBRATED):
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
