"""`calibrate`: a model's curvature decides the step sizes of a solver's stages, a short run tests.

1. A pilot run gives states at each level. From there each stage is begun as the solver begins it,
   and a few differences of the score tell the curvature of its kernel, exp(-g), in units of its
   envelope (:mod:`.stage_probe`).
2. Solvers that accept and reject get the tau at which the acceptance, predicted by the curvature
   for every rung of a ladder at once (:mod:`.proposals`), is nearest to the target. Unadjusted
   kinetic solvers get gamma and tau from the ends of the curvature (:mod:`.kinetic`).
3. The table of a solver that accepts and rejects runs once. Stages whose acceptance is off move
   along the predicted curve, and the table runs again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..guide import Guidance, per_sample
from ..loop.ladder import check_target, splice
from ..loop.model_calls import CountedModel, shaped_energy
from ..loop.run import run
from ..loop.stats import collect
from ..noise import initial_state, make_key, make_stream
from ..solvers import solver as make_table
from ..solvers import solver_options
from ..tables.paths import Path, get_path
from ..tables.table import StepTable
from .calibration import Calibration, StageSetting
from .curvature import FIRST_ID, check_model
from .kinetic import KINETIC, check_free, settings
from .model_score import Score
from .proposals import START, acceptance, ladder, leapfrog
from .stage_probe import Probe, probes, stage_levels

BAND = 0.15  # about the target, within which a stage's tau is left as it is
FARTHEST = 24.0  # rungs that a correction moves by at most
EXACT = 0.05  # |1 - l| of a kernel that is its envelope: the stage begins where it ends
IDLE = 0.1  # range of the acceptance over a ladder on which tau decides nothing


def calibrate(
    model_fn: Any,
    dim: int | Sequence[int],
    *,
    path: str | Path,
    prediction: str,
    steps: int,
    solver: str = "rtk-mala",
    target_acceptance: float = 0.6,
    samples: int = 16,
    iterations: int = 2,
    corrections: int = 2,
    condition: Any = None,
    uncond: Any = None,
    guidance: float | None = None,
    uncond2: Any = None,
    guidance2: float | None = None,
    temperature: float | None = None,
    energy_fn: Callable | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    **options: Any,
) -> Calibration:
    """The table of a solver with the step size of each stage set by the model's curvature.

    It looks at each stage by a few differences of the score, see
    :mod:`ardiff.planning.calibrate`, and then measures the acceptance by a run of the whole table.
    :func:`ardiff.adapted_solver` finds tau by runs alone, and takes more calls.

    Args:
        model_fn: ``model_fn(x, level, condition)`` or an object with ``hoist``, as of
            :func:`ardiff.sample`; x is `[samples, dim]`, or `[samples, *dim]`.
        dim: elements of a sample, or its sizes.
        path, prediction, steps, options: as in :func:`ardiff.solver`; `tau` of a solver that
            accepts and rejects is where its ladder begins, of others it is not taken.
        solver: one that accepts and rejects (``rtk-mala``, ``rtk-mala-projected``, ``rtk-hmc``,
            ``rtk-harmonic-mala``), or an unadjusted kinetic one (``rtk-uld``, ``rtk-baoab``,
            ``rtk-obabo``, ``rtk-ubu``), whose gamma is picked too.
        target_acceptance: of each stage.
        samples: of the pilot and of the runs; their ids are near the last.
        iterations: products of the curvature with a direction, two model calls each.
        corrections: of tau at most, a run of the table each.
        condition, uncond, guidance, uncond2, guidance2, temperature, energy_fn: as in
            :func:`ardiff.sample`, those that the samples will be drawn with; a condition with a row
            per sample has `samples` rows.
        seed: of the pilot's draws.

    Returns:
        :class:`~ardiff.planning.calibration.Calibration`: `.table`, `.report()`, `.as_dict()`.

    Raises:
        ValueError, TypeError: a solver without a step size that curvature decides, a bad argument,
            before the model is called.
        FloatingPointError: a score that is not finite.

    Example:
        Data N(0, 1/10000) in 1,000 dimensions, of which the default tau knows nothing:

        >>> import ardiff
        >>> from ardiff.data.mixture import GaussianMixture
        >>> model = GaussianMixture([[0.0] * 1000], 1e-4).model("flow", "flow")
        >>> found = ardiff.calibrate(
        ...     model, 1000, path="flow", prediction="flow", solver="rtk-mala", steps=25,
        ... )
        >>> samples, stats = ardiff.sample(
        ...     model, (8, 1000), table=found.table, seed=1, return_stats=True
        ... )
        >>> 0.4 < stats.expected_acceptance.mean() < 0.8
        tensor(True)
    """
    path, shape = get_path(path), check_model(model_fn, dim, samples)
    check_target(target_acceptance)
    _check_counts(iterations=iterations, corrections=corrections)
    options = {"path": path, "prediction": prediction, "steps": steps, **options}
    if "dim" in solver_options(solver):
        options.setdefault("dim", math.prod(shape[1:]))
    guided = Guidance.of(uncond, guidance, uncond2, guidance2).per_sample(1, device)
    noise_scale = {}
    if temperature is not None:
        noise_scale["noise_scale"] = per_sample("temperature", temperature, 1, device, low=0.0)
    adjusted = solver not in KINETIC
    if adjusted:
        taus = ladder(solver, options)
        moves = [leapfrog(solver, tau, options) for tau in taus]
        first = make_table(solver, **options)
        inside, reach = first.accept_rows, moves[0].steps
    else:
        first = make_table(solver, **check_free(solver, options))
        inside, reach = slice(None), 1
    score = Score(model_fn, shape, path, prediction, condition, guided)
    stream = make_stream(range(FIRST_ID, FIRST_ID + samples), samples, 0, device)
    looks = probes(
        score, path, stage_levels(first), first.level[inside], make_key(seed, device), stream,
        math.prod(shape[1:]), options.get("warm_start") or "ancestral",
        max(iterations, reach), reach,
    )  # fmt: skip
    found = [_setting(look, path) for look in looks]
    spent = score.calls
    if not adjusted:
        table, found = settings(solver, options, looks, found)
        return Calibration(table, tuple(found), None, spent, spent, spent * samples, 0)

    curves = np.stack([acceptance(moves, look.vectors(reach)) for look in looks])
    counted = CountedModel(model_fn, shape)
    energy = energy_fn and shaped_energy(energy_fn, shape)

    def table_of(rung: np.ndarray) -> StepTable:
        used, place = np.unique(rung, return_inverse=True)
        return splice([make_table(solver, **{**options, "tau": taus[k]}) for k in used], place)

    def measure(rung: np.ndarray, n: int) -> np.ndarray:
        """The acceptance of each stage in the n-th run, of the table of these rungs."""
        table, key, decisions = table_of(rung), make_key(seed + 1 + n, device), []
        run(
            table, counted, initial_state(table, key, stream, math.prod(shape[1:])), key=key,
            stream=stream, condition=condition, energy_fn=energy, decisions=decisions,
            **guided.arguments(), **noise_scale,
        )  # fmt: skip
        return collect(table, 0, 0.0, decisions).expected_acceptance.nan_to_num().numpy()

    idle = np.ptp(curves, 1) < IDLE
    rungs, rates, runs = _approach(curves, idle, target_acceptance, START, measure, corrections)
    found = [
        replace(
            stage, tau=taus[rung], predicted=float(curve[rung]), measured=float(rate),
            note=stage.note or _note(rate, target_acceptance, still),
        )
        for stage, curve, rung, rate, still in zip(found, curves, rungs, rates, idle, strict=True)
    ]  # fmt: skip
    calls = spent + counted.calls
    return Calibration(
        table_of(rungs), tuple(found), target_acceptance, calls, spent, calls * samples, runs
    )


def _approach(
    curves: np.ndarray,
    idle: np.ndarray,
    target: float,
    start: int,
    measure: Callable[[np.ndarray, int], np.ndarray],
    corrections: int,
) -> tuple[np.ndarray, np.ndarray, int]:
    """The rung of each stage, of those measured, whose acceptance is nearest to `target`.

    Args:
        curves: predicted acceptance, float64 `[stages, rungs]`.
        idle: bool `[stages]`, those that stay on rung `start`.
        measure: the acceptance of each stage on given rungs, and the number of the run.

    Returns:
        Rungs and acceptances `[stages]`, and how often it measured.
    """
    stages, count = curves.shape
    falling = np.minimum.accumulate(curves, 1)
    rung = np.where(idle, start, np.abs(falling - target).argmin(1))
    known = np.full((stages, count), np.nan)
    for n in range(corrections + 1):
        rate = measure(rung, n)
        known[np.arange(stages), rung] = rate
        off = ~idle & (np.abs(rate - target) > BAND)
        moved = rung.copy()
        for i in np.flatnonzero(off):
            moved[i] = _next_rung(falling[i], known[i], rung[i], target)
        if n == corrections or np.array_equal(moved, rung):
            break
        rung = moved
    best = np.nanargmin(np.abs(known - target), 1)
    return best, known[np.arange(stages), best], n + 1


def _next_rung(falling: np.ndarray, known: np.ndarray, rung: int, target: float) -> int:
    """As far along the predicted curve as the acceptance known at `rung` is from `target`, between
    the rungs that are known to accept more and less."""
    shown = np.clip(known[rung], 0.02, 0.98)
    here, there = np.interp([-shown, -target], -falling, np.arange(len(falling)))
    aim = rung + np.rint(np.clip(there - here, -FARTHEST, FARTHEST))
    more = np.flatnonzero(known >= target)  # NaN is neither
    less = np.flatnonzero(known < target)
    low = more.max() + 1 if len(more) else 0
    high = less.min() - 1 if len(less) else len(falling) - 1
    return int(np.clip(aim, low, high)) if low <= high else int(rung)


def _setting(look: Probe, path: Path) -> StageSetting:
    t = look.t
    high, low = (each.cpu().numpy() for each in look.along.ends())
    pull = t.r**2 / t.s2
    exact = max(abs(1 - high.max()), abs(1 - low.min())) < EXACT
    asymmetry = float(look.along.asymmetry().median())
    note = "its kernel is its start: tau changes no law" if exact else ""
    if asymmetry > 0.1:
        note = "the score is no gradient: the acceptance is that of the rule"
    elif low.min() <= 0:
        note = "the kernel is not log-concave everywhere"
    return StageSetting(
        look.level, t.sigma_b, t.width, float(high.max() / t.width**2 - pull), float(high.max()),
        float(np.median(high)), float(low.min()), asymmetry, math.nan, note=note,
    )  # fmt: skip


def _note(rate: float, target: float, idle: bool) -> str:
    if idle:
        return "tau makes no difference to the acceptance"
    return "" if abs(rate - target) <= BAND else "off the target"


def _check_counts(**values: int) -> None:
    for name, value in values.items():
        least = 0 if name == "corrections" else 1
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{name} must be an integer of {least} or more, got {value!r}")
