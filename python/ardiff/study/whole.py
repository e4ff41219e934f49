"""The whole study, its parts spread over processes; equal settings give equal results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from . import adjusted, paper, scaling
from .mixture import METHODS, Row, run_problem
from .pooling import Floors, Results
from .targets import TARGETS
from .workers import Progress, run_jobs

# Parts beside the comparison of solvers: `TITLE`, `run(seed, cut)` and `markdown(found)`.
EXPERIMENTS = {"paper": paper, "adjusted": adjusted, "scaling": scaling}
HELD_OUT = tuple(f"random-{seed}" for seed in (*range(101, 110), *range(201, 210)))


@dataclass(frozen=True)
class Settings:
    """What is compared on what. Problems are (target, score); `seeds` are those of the noise;
    `modes` are those of the part ``paper``."""

    problems: tuple[tuple[str, str], ...]
    methods: tuple[str, ...] = METHODS
    budgets: tuple[int, ...] = (5, 8, 16, 32, 64)
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    samples: int = 2000
    training_steps: int = 1500
    modes: tuple[str, ...] = paper.MODES
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
        parts: ``solvers``, and of :data:`EXPERIMENTS`.
        seed: of targets, models and floors, and of the experiments, 0 or more.
        processes: how many run at once, by default one for each CPU. Results do not depend on it.
        progress: ``progress(done, total)`` after each problem and experiment.

    Raises:
        ChildProcessError: a process was killed; see :func:`ardiff.study.workers.run_jobs`.
    """
    experiments = [name for name in EXPERIMENTS if name in parts]
    options = {"paper": {"modes": settings.modes}}
    jobs: dict[Any, Callable[[], Any]] = {
        name: partial(EXPERIMENTS[name].run, seed, settings.cut, **options.get(name, {}))
        for name in experiments
    }
    problems = settings.problems if "solvers" in parts else ()
    for target, score in problems:
        jobs[target, score] = partial(
            run_problem, target, score, methods=settings.methods, budgets=settings.budgets,
            seeds=settings.seeds, samples=settings.samples,
            training_steps=settings.training_steps, seed=seed,
        )  # fmt: skip
    found = run_jobs(jobs, processes, progress)
    study = Study(experiments={name: found[name] for name in experiments})
    for place in problems:
        rows, study.floors[place] = found[place]
        study.rows += rows
    return study
