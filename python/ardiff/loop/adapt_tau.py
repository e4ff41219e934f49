"""Ladders of tau, and tables whose tau a pilot has adapted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..guide import Guidance, per_sample
from ..noise import initial_state, make_key, make_stream
from ..solvers import default_tau, solver_options
from ..solvers import solver as make_table
from ..tables.table import StepTable
from .ladder import Ladder, acceptance_probability, check_target, splice
from .run import Decision, run

# from 1/256, for models far steeper than the default tau is for, to 64, for data that widen g
RUNGS = tuple(2 ** (k / 2) for k in range(-16, 13))
START = RUNGS.index(1.0)
PILOT_IDS = range(2**43 - 64, 2**43)


def _rungs(name: str, options: dict[str, Any]) -> tuple[list[float], list[StepTable]]:
    """Tables of solver `name` with tau times each of RUNGS that the solver allows."""
    default, tau = default_tau(name, options), options.get("tau")
    tau = default if tau is None else tau
    scales, tables = [], []
    for scale in RUNGS:
        try:
            table = make_table(name, **{**options, "tau": tau * scale})
        except ValueError:
            if scale <= 1:
                raise
            break  # an angle of rtk-harmonic-mala past pi
        scales.append(scale)
        tables.append(table)
    if not len(tables[0].accept_rows):
        raise ValueError(f"solver {name} has no accept step, so no acceptance to adapt to")
    return scales, tables


def make_ladder(
    choices: dict[str, Any], options: dict[str, Any], sizes: tuple[int, ...], target: float
) -> Ladder:
    """The ladder on which each of `sizes[0]` samples adapts in the first half of its accept rows.

    `choices` holds solver, path, prediction and steps.
    """
    missing = [name for name, value in choices.items() if value is None]
    if missing:
        raise TypeError(f"sample needs {', '.join(missing)}, or a table from ardiff.solver")
    name, merged = choices["solver"], {**choices, **options}
    del merged["solver"]
    if "dim" in solver_options(name):
        merged.setdefault("dim", math.prod(sizes[1:]))
    scales, tables = _rungs(name, merged)
    rows = len(tables[0].accept_rows)
    return Ladder(tables, sizes[0], target=target, adapting=rows // 2, start=START, scales=scales)


def adapted_solver(
    name: str,
    model_fn: Callable,
    dim: int,
    *,
    target_acceptance: float = 0.57,
    passes: int = 8,
    pilot_ids: Sequence[int] = PILOT_IDS,
    seed: int = 0,
    condition: Any = None,
    uncond: Any = None,
    guidance: float | None = None,
    uncond2: Any = None,
    guidance2: float | None = None,
    temperature: float | None = None,
    energy_fn: Callable | None = None,
    device: torch.device | str = "cpu",
    **options,
) -> StepTable:
    """The table of a solver that accepts and rejects, with tau adapted for each stage by a pilot.

    A pilot of fixed ids is run `passes` times; after the n-th, each stage's position on a ladder of
    tau moves by 4 (mean acceptance - target) / sqrt(n) rungs of sqrt(2) (Robbins & Monro 1951). One
    more pass tries the last positions, and each stage gets the rung, of those it has visited, whose
    mean acceptance was nearest to the target: where the leapfrog becomes unstable, one rung further
    accepts nothing. The table that comes out is fixed: samples drawn with it depend on no batch.

    Args:
        name, options: as in :func:`ardiff.solver`; `tau` is where the ladder starts.
        model_fn: ``model_fn(x, level, condition)`` with x `[len(pilot_ids), dim]`.
        dim: elements of a sample.
        pilot_ids, seed: of the pilot's draws; the default ids are the last 64 of all.
        condition, uncond, guidance, uncond2, guidance2, temperature, energy_fn: as in
            :func:`ardiff.sample`, one value for all, and those that the samples will be drawn with.

    Raises:
        ValueError: a solver without tau or accept step, a target outside (0, 1), no pass, no pilot.

    Example:
        >>> import ardiff
        >>> table = ardiff.adapted_solver(
        ...     "rtk-mala", lambda x, level, condition: -x, dim=2, path="ou", prediction="score",
        ...     steps=12, passes=2,
        ... )
        >>> table.solver, len(table.accept_rows) > 0
        ('rtk-mala', True)
    """
    check_target(target_acceptance)
    if passes < 1:
        raise ValueError(f"passes must be 1 or more, got {passes}")
    if not len(pilot_ids):
        raise ValueError("pilot_ids must name one sample or more")
    if "dim" in solver_options(name):
        options.setdefault("dim", dim)
    guided = Guidance.of(uncond, guidance, uncond2, guidance2).per_sample(1, device)
    modifiers = guided.arguments()
    if temperature is not None:
        modifiers["noise_scale"] = per_sample("temperature", temperature, 1, device, low=0.0)
    _, tables = _rungs(name, options)
    stream = make_stream(list(pilot_ids), len(pilot_ids), 0, device)
    stages = int(tables[0].stage[-1]) + 1
    position = np.full(stages, float(START))
    visits, total = np.zeros((2, stages, len(tables)))
    for n in range(1, passes + 2):
        rung = np.rint(position).astype(int)
        table = splice(tables, rung)
        key, decisions = make_key(seed + n, device), []
        x = initial_state(table, key, stream, dim)
        run(
            table, model_fn, x, key=key, stream=stream, condition=condition, energy_fn=energy_fn,
            decisions=decisions, **modifiers,
        )  # fmt: skip
        rate = np.array([_mean_acceptance(d) for d in decisions])
        count = np.bincount(table.stage)
        mean = np.bincount(table.stage, rate) / count
        visits[np.arange(stages), rung] += 1
        total[np.arange(stages), rung] += mean
        position = position + 4 / math.sqrt(n) * (mean - target_acceptance)
        position = position.clip(0, len(tables) - 1)
    off = np.abs(total / np.maximum(visits, 1) - target_acceptance)
    off += 1e-6 * np.abs(np.arange(len(tables)) - position[:, None])  # of equals, the nearest
    return splice(tables, np.where(visits > 0, off, np.inf).argmin(1))


def _mean_acceptance(decision: Decision) -> float:
    return float(acceptance_probability(decision.log_alpha).double().mean())
