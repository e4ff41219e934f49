"""The whole study, its parts spread over processes; equal settings give equal results."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

from . import adjusted, paper, scaling
from .mixture import METHODS, Row, run_problem
from .pooling import Floors, Results
from .targets import TARGETS

# Parts beside the comparison of solvers: `run(seed, cut, progress)` and `markdown(found)`.
EXPERIMENTS = {"paper": paper, "adjusted": adjusted, "scaling": scaling}
PARTS = ("solvers", *EXPERIMENTS)
HELD_OUT = tuple(f"random-{seed}" for seed in (*range(101, 110), *range(201, 210)))
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Settings:
    """What is compared on what. Problems are (target, score); `seeds` are those of the noise."""

    problems: tuple[tuple[str, str], ...]
    methods: tuple[str, ...] = METHODS
    budgets: tuple[int, ...] = (5, 8, 16, 32, 64)
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    samples: int = 4000
    training_steps: int = 1500
    cut: bool = False


FULL = Settings((
    *((target, "exact") for target in (*HELD_OUT, *TARGETS)),
    *((target, score) for score in ("perturbed", "guided", "learned") for target in HELD_OUT[:3]),
))  # fmt: skip
CUT = Settings(
    tuple((HELD_OUT[0], score) for score in ("exact", "perturbed", "guided", "learned")),
    methods=("ddpm", "dpmpp-2m", "dpmpp-2m-sde", "learned", "plan", "rtk-harmonic", "unipc"),
    budgets=(8, 16), seeds=(0, 1), samples=1000, training_steps=100, cut=True,
)  # fmt: skip


@dataclass
class Study:
    """What a study found: the comparison's rows and floors, and what each experiment returned."""

    rows: list[Row] = field(default_factory=list)
    floors: Floors = field(default_factory=dict)
    experiments: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def results(self) -> Results:
        return Results(self.rows, self.floors)


def run_study(
    settings: Settings,
    parts: Sequence[str],
    seed: int,
    processes: int | None = None,
    progress: Progress | None = None,
) -> Study:
    """Runs the parts of a study.

    Args:
        settings: of the comparison of solvers, and whether the experiments are cut.
        parts: of :data:`PARTS`.
        seed: of targets, models and floors, and of the experiments.
        processes: how many run at once, by default one for each CPU. Results do not depend on it.
        progress: ``progress(done, total)`` after each problem and experiment.
    """
    context = get_context("spawn")
    with ProcessPoolExecutor(processes or os.cpu_count(), context, _one_thread) as pool:
        experiments = {
            name: pool.submit(EXPERIMENTS[name].run, seed, settings.cut)
            for name in parts
            if name in EXPERIMENTS
        }
        problems = {}
        for target, score in settings.problems if "solvers" in parts else ():
            problems[target, score] = pool.submit(
                run_problem, target, score, methods=settings.methods, budgets=settings.budgets,
                seeds=settings.seeds, samples=settings.samples,
                training_steps=settings.training_steps, seed=seed,
            )  # fmt: skip
        try:
            return _collected(experiments, problems, progress)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _collected(
    experiments: dict[str, Future], problems: dict[tuple[str, str], Future], progress
) -> Study:
    study, done = Study(), 0
    total = len(experiments) + len(problems)

    def told(result):
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)
        return result

    for place, future in problems.items():
        rows, floor = told(future.result())
        study.rows += rows
        study.floors[place] = floor
    study.experiments = {name: told(future.result()) for name, future in experiments.items()}
    return study


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
