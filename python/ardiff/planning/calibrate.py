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
from ..loop.checks import check_signature
from ..loop.ladder import check_target, splice
from ..loop.model_calls import CountedModel, shaped_energy
from ..loop.run import run
from ..loop.stats import SampleStats, collect
from ..models.image_model import ARModel
from ..noise import initial_state, make_key, make_stream
from ..solvers import solver as make_table
from ..solvers import solver_options
from ..tables.paths import Path, get_path
from ..tables.table import StepTable
from .calibration import Calibration, StageSetting
from .checks import check_calls, check_counts
from .contexts import patch_model
from .curvature import FIRST_ID, check_device, check_model
from .kinetic import COARSE, check_free, enough_stages, settings
from .model_score import Score
from .proposals import START, acceptance, ladder, leapfrog
from .stability import KINETIC
from .stage_probe import Probe, probes, stage_levels
from .step_search import approach

EXACT = 0.05  # |1 - l| of a kernel that is its envelope: the stage begins where it ends
OFF = 0.2  # from the target, which the report names
IDLE = 0.1  # range of the acceptance over a ladder on which tau decides nothing

# a look at the stages between levels that end inside; reach of the products from the gradient
Look = Callable[..., list[Probe]]


def calibrate(
    model_fn: Any,
    dim: int | Sequence[int] | None = None,
    *,
    path: str | Path | None = None,
    prediction: str | None = None,
    steps: int = 48,
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
            :func:`ardiff.sample`; x is `[samples, dim]`, or `[samples, *dim]`. Or an `ARModel`, as
            :func:`ardiff.load` returns one: its denoiser is looked at in the contexts of images
            that it draws, on its own grid, and dim, path, prediction and conditions are its own.
        dim: elements of a sample, or its sizes.
        path, prediction, steps, options: as in :func:`ardiff.solver`; `tau` of a solver that
            accepts and rejects is where its ladder begins, of others it is not taken.
        solver: one that accepts and rejects (``rtk-mala``, ``rtk-mala-projected``, ``rtk-hmc``,
            ``rtk-harmonic-mala``), or an unadjusted kinetic one (``rtk-uld``, ``rtk-baoab``,
            ``rtk-obabo``, ``rtk-ubu``). Of these gamma is picked too, and with neither `stages` nor
            `inner` in `options` their number: of stages as many as fit, but no more than the theory
            asks for, and then as many inner steps as fit.
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
        FloatingPointError: a score, or most energies of a run, that are not finite.

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
    if isinstance(model_fn, ARModel):
        own = {"dim": dim, "path": path, "prediction": prediction, "condition": condition}
        own |= {"uncond": uncond, "uncond2": uncond2, "guidance2": guidance2}
        beside = [name for name, value in own.items() if value is not None]
        if beside:
            raise ValueError(f"{beside[0]} is that of the images' model: leave it out")
        if guidance is not None and model_fn.null is None:
            raise ValueError("guidance: the model was trained without context dropout")
        check_counts(samples=samples)
        return calibrate(**{
            "steps": steps, "solver": solver, "target_acceptance": target_acceptance,
            "samples": samples, "iterations": iterations, "corrections": corrections,
            "temperature": temperature, "energy_fn": energy_fn, "seed": seed,
            **patch_model(model_fn, samples, guidance, seed), **options,
        })  # fmt: skip
    needed = {"dim": dim, "path": path, "prediction": prediction}
    missing = [name for name, value in needed.items() if value is None]
    if missing:
        raise TypeError(
            f"calibrate needs {', '.join(missing)}, or a model that ardiff.load returns"
        )
    path, shape = get_path(path), check_model(model_fn, dim, samples)
    check_target(target_acceptance)
    check_calls("steps", steps)
    check_counts(iterations=iterations)
    check_counts(0, corrections=corrections)
    check_device(device)
    if callable(energy_fn):
        check_signature("energy_fn", energy_fn, "energy_fn(x, level, condition)")
    elif energy_fn is not None:
        raise TypeError(f"energy_fn must be callable, got {type(energy_fn).__name__}")
    options = {"path": path, "prediction": prediction, "steps": steps, **options}
    elements = math.prod(shape[1:])
    if "dim" in solver_options(solver):
        options["dim"] = elements
    guided = Guidance.of(uncond, guidance, uncond2, guidance2).per_sample(1, device)
    modifiers = guided.arguments()
    if temperature is not None:
        modifiers["noise_scale"] = per_sample("temperature", temperature, 1, device, low=0.0)
    if solver in KINETIC:
        check_free(solver, options)
    first = make_table(solver, **options)
    if first.energy != (energy_fn is not None):
        raise ValueError('accept="energy" and energy_fn go together: pass both or neither')
    score = Score(model_fn, shape, path, prediction, condition, guided, device)
    stream = make_stream(range(FIRST_ID, FIRST_ID + samples), samples, 0, device)

    def look(levels: np.ndarray, inside: np.ndarray, reach: int = 1) -> list[Probe]:
        warm_start = options.get("warm_start") or "ancestral"
        return probes(
            score, path, levels, inside, make_key(seed, device), stream, elements, warm_start,
            max(iterations, reach), reach,
        )  # fmt: skip

    if solver in KINETIC:
        table, stages = _kinetic(solver, options, first, look)
        return Calibration(table, stages, None, score.calls, score.calls, score.calls * samples, 0)

    counted = CountedModel(model_fn, shape)
    energy = energy_fn and shaped_energy(energy_fn, shape)

    def measure(table: StepTable, n: int) -> np.ndarray:
        """The acceptance of each stage in the n-th run."""
        key, decisions = make_key(seed + 1 + n, device), []
        run(
            table, counted, initial_state(table, key, stream, elements), key=key, stream=stream,
            condition=condition, energy_fn=energy, decisions=decisions, **modifiers,
        )  # fmt: skip
        return _acceptance(collect(table, 0, 0.0, decisions))

    table, stages, runs = _adjusted(
        solver, options, first, look, measure, target_acceptance, corrections
    )
    calls = score.calls + counted.calls
    return Calibration(table, stages, target_acceptance, calls, score.calls, calls * samples, runs)


def _kinetic(
    solver: str, options: dict[str, Any], first: StepTable, look: Look
) -> tuple[StepTable, tuple[StageSetting, ...]]:
    """The table of an unadjusted kinetic solver and its stages: as many as the theory asks for
    where their number is free, in the grid of `first` else."""
    levels = stage_levels(first)
    if len(levels) > 2 * COARSE and _free_stages(options):
        some = levels[np.linspace(0, len(levels) - 1, COARSE + 1).round().astype(int)]
        found = [_setting(each) for each in look(some, some)]
        stages = max(2, enough_stages(found, options["path"]))
        if stages < len(levels) - 1:
            options = {**options, "stages": stages}
            levels = stage_levels(make_table(solver, **options))
    seen = look(levels, levels)
    table, stages = settings(solver, options, seen, [_setting(each) for each in seen])
    return table, tuple(stages)


def _adjusted(
    solver: str,
    options: dict[str, Any],
    first: StepTable,
    look: Look,
    measure: Callable[[StepTable, int], np.ndarray],
    target: float,
    corrections: int,
) -> tuple[StepTable, tuple[StageSetting, ...], int]:
    """The table of a solver that accepts and rejects, its stages, and the runs that it took."""
    taus = ladder(solver, options)
    moves = [leapfrog(solver, tau, options) for tau in taus]
    reach = moves[0].steps
    seen = look(stage_levels(first), first.level[first.accept_rows], reach)
    if not seen:
        raise ValueError(f"no stage of this {solver} makes a proposal: see its window and its grid")
    curves = np.stack([acceptance(moves, each.vectors(reach)) for each in seen])

    def table_of(rungs: np.ndarray) -> StepTable:
        used, place = np.unique(rungs, return_inverse=True)
        return splice([make_table(solver, **{**options, "tau": taus[k]}) for k in used], place)

    idle = np.ptp(curves, 1) < IDLE
    rungs, rates, runs = approach(
        curves, idle, target, START, lambda rungs, n: measure(table_of(rungs), n), corrections
    )
    stages = []
    for look_at, curve, rung, rate, still in zip(seen, curves, rungs, rates, idle, strict=True):
        stage = _setting(look_at)
        note = stage.note or _note(rate, target, still)
        stages.append(
            replace(
                stage, tau=taus[rung], predicted=float(curve[rung]), measured=float(rate), note=note
            )
        )
    return table_of(rungs), tuple(stages), runs


def _acceptance(stats: SampleStats) -> np.ndarray:
    """That of each stage, 0 where all of its proposals are NaN or infinite."""
    if 2 * stats.rejected_nonfinite > int(stats.decisions.sum()):
        raise FloatingPointError(
            "most proposals of a run have an energy error that is NaN or infinite: see whether the "
            "model's outputs, or the energies, are finite at all levels of the grid"
        )
    return stats.expected_acceptance.nan_to_num().numpy()


def _free_stages(options: dict[str, Any]) -> bool:
    """Whether their number is ours to pick."""
    given = any(options.get(name) is not None for name in ("stages", "inner"))
    return not given and (options.get("grid") is None or isinstance(options["grid"], str))


def _setting(look: Probe) -> StageSetting:
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
        level=look.level, sigma=t.sigma_b, width=t.width,
        curvature=float(high.max() / t.width**2 - pull),
        floor=float(low.min() / t.width**2 - pull),
        highest=float(high.max()), median=float(np.median(high)), lowest=float(low.min()),
        asymmetry=asymmetry, tau=math.nan, note=note,
    )  # fmt: skip


def _note(rate: float, target: float, idle: bool) -> str:
    if idle:
        return "tau makes no difference to the acceptance"
    return "" if abs(rate - target) <= OFF else "off the target"
