"""Tables over k-diffusion's sigmas, and what each row is in terms of their intervals."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np

from ..solvers import check_options, rtk_uld
from ..solvers._over_levels import over_levels
from ..solvers._rtk import adjusted as metropolis
from ..solvers._rtk import stages as rtk
from ..tables.paths import get_path, rising
from ..tables.table import StepTable, TableBuilder

PATHS = ("edm", "flow")
NORMALS = {"diffusion": (("x_n",),), "uld": (("z_1", "v_1"), ("z_2",))}  # columns that take each


@dataclass(frozen=True)
class SigmaPlan:
    """A table over sigmas.

    Attributes:
        sigmas: as given.
        table: None where there is no interval.
        levels: the sigmas at which stages begin, and the last; those given, unless planned anew.
        stage: of each row.
        begins: row -> interval of `sigmas`, for the rows that begin a stage.
        draws: of each row the normals it takes, by their names in the ops, each with the part
            (begin, end) of the stage's interval that is its own.
    """

    sigmas: tuple[float, ...]
    table: StepTable | None
    levels: tuple[float, ...]
    stage: tuple[int, ...]
    begins: dict[int, int]
    draws: tuple[dict[str, tuple[float, float]], ...]

    def __post_init__(self) -> None:
        """Raises for what a denoiser over sigmas cannot give."""
        if self.table is None:
            return
        if not isinstance(self.table, StepTable):
            raise TypeError(
                "the samplers over sigmas run one StepTable for all samples, got "
                f"{type(self.table).__name__}; ardiff.sample gives each sample its own"
            )
        if self.table.energy:
            raise ValueError(
                f"solver {self.table.solver} with accept='energy' compares energies, which a "
                "denoiser does not give: use accept='trapezoid' or 'simpson', or ardiff.sample "
                "with energy_fn"
            )

    @property
    def intervals(self) -> int:
        return max(len(self.sigmas) - 1, 0)

    @property
    def path(self) -> str:
        """The name of the path of the sigmas."""
        return "edm" if self.table is None else self.table.path

    def require_whole_intervals(self) -> None:
        """ValueError unless each row that adds noise adds that of a whole interval of sigmas."""
        whole = {"noise": (0.0, 1.0)}
        if any(draws and draws != whole for draws in self.draws):
            raise ValueError(
                'noise="path" needs a solver that adds noise once on each interval of sigmas, such '
                f"as ddpm, ddim or dpmpp-2m-sde; {self.table.solver} adds more within one"
            )


# Solvers that follow the ODE towards noise where they add none, and those of them whose step to
# sigma = 1 of path flow has a limit: the higher orders divide by a log-SNR that has none.
INVERSIONS = ("ddim", "euler", "flow-euler", "heun", "dpmpp-2m", "dpmpp-2m-sde")
TO_NOISE = ("ddim", "euler", "flow-euler")
_NEAR_NOISE = 1 - 2.0**-20  # in place of that sigma = 1


class Levels(NamedTuple):
    """Sigmas without those that repeat the one before: a step of length 0 leaves x as it is.

    Attributes:
        sigmas: decreasing or increasing.
        interval: of each step, the interval of the sigmas given.
        rising: whether they increase, as in an inversion.
    """

    sigmas: tuple[float, ...]
    interval: tuple[int, ...]
    rising: bool

    def require_falling(self, why: str) -> None:
        """ValueError, with the reason, where they increase."""
        if self.rising:
            first, second = self.sigmas[:2]
            raise ValueError(
                f"sigmas must decrease, but sigmas[{self.interval[0] + 1}] is {second} after "
                f"{first}: {why}; for an inversion use a solver without noise, such as ddim "
                "or dpmpp-2m, or eta=0"
            )


def levels_of(path: str, sigmas: tuple[float, ...]) -> Levels:
    """The steps of a run over sigmas.

    Raises:
        ValueError: sigmas below 0 or not finite, on ``flow`` above 1, that neither decrease
            throughout nor increase throughout, or that increase from 0.
    """
    if path not in PATHS:
        raise ValueError(f"unknown path {path!r}; known: {', '.join(PATHS)}")
    high = 1.0 if path == "flow" else math.inf
    for i, sigma in enumerate(sigmas):
        if not (math.isfinite(sigma) and 0 <= sigma <= high):
            bound = "" if high == math.inf else f" and at most {high:g} on path {path}"
            raise ValueError(f"sigmas must be finite, not negative{bound}; sigmas[{i}] is {sigma}")
    moved = [i for i, sigma in enumerate(sigmas) if i == 0 or sigma != sigmas[i - 1]]
    distinct, interval = tuple(sigmas[i] for i in moved), tuple(i - 1 for i in moved[1:])
    rising = len(distinct) > 1 and distinct[1] > distinct[0]
    if rising and path == "flow":
        distinct = (*distinct[:-1], min(distinct[-1], _NEAR_NOISE))
    for i, a, b in zip(interval, distinct[:-1], distinct[1:], strict=True):
        if (b > a) != rising:
            turn = "must increase throughout" if rising else "must decrease"
            raise ValueError(f"sigmas {turn}, but sigmas[{i + 1}] is {b} after {a}")
    if rising and distinct[0] == 0:
        raise ValueError(
            "sigmas that increase must begin above 0, where a model has no slope: ComfyUI's "
            "FlipSigmas puts 0.0001 there"
        )
    return Levels(distinct, interval, rising)


@functools.lru_cache(maxsize=64)
def solver_plan(name: str, path: str, sigmas: tuple[float, ...], **options) -> SigmaPlan:
    """The table of any solver on the sigmas; they are the ends of its steps or stages.

    The interval from sigma_i begins with the last row at that level before the next interval: the
    rows before it there belong to the step that came from above, whose answers a step may end with,
    and rows after it to a step that is done over.
    """
    found = levels_of(path, sigmas)
    ends = found.sigmas
    check_options(name, options)
    if len(ends) < 2:
        return SigmaPlan(sigmas, None, ends, (), {}, ())
    to_data = ends[-1] == 0
    make = functools.partial(
        over_levels, name, prediction="sample", denoise_last=to_data, **options
    )
    if name not in INVERSIONS:
        found.require_falling(f"{name} has no form for steps towards more noise")
    if found.rising and make(path=get_path(path), levels=ends[::-1]).draws:
        found.require_falling(f"{name} adds noise, which no step towards more noise can")
    if found.rising and path == "flow" and ends[-1] == _NEAR_NOISE and name not in TO_NOISE:
        raise ValueError(
            f"{name} has no step to sigma = 1 on path flow, where no data are left: end below 1, "
            f"or use {' or '.join(TO_NOISE)}"
        )
    where = rising(get_path(path)) if found.rising else get_path(path)
    table = make(path=where, levels=ends[:-1] if to_data else ends)
    begins, rest = {}, table.level.tolist()
    for a, i in zip(reversed(ends[:-1]), reversed(found.interval), strict=True):
        if a in rest:
            row = len(rest) - 1 - rest[::-1].index(a)
            begins[row], rest = i, rest[:row]
    stage = np.cumsum([row in begins for row in range(len(table))]) - 1
    stage = tuple(np.maximum(stage, 0).tolist())
    return SigmaPlan(sigmas, table, ends, stage, begins, _draws(table, stage))


def table_levels(table: StepTable) -> tuple[float, ...]:
    """The sigmas of a table over sigmas: its levels without repeats, then 0."""
    return (*(level for level, _ in groupby(table.level.tolist())), 0.0)


def table_plan(table: StepTable, path: str, sigmas: tuple[float, ...]) -> SigmaPlan:
    """A given table, over its own levels, which the sigmas must be."""
    if path not in PATHS:
        raise ValueError(f"unknown path {path!r}; known: {', '.join(PATHS)}")
    if (table.path, table.prediction) != (path, "sample"):
        table = table.on(path, "sample")
    ends = table_levels(table)
    if len(sigmas) != len(ends) or not np.allclose(sigmas, ends, rtol=1e-4, atol=1e-6):
        raise ValueError(
            f"a table fixes its sigmas: expected the {len(ends)} of table_sigmas(table), from "
            f"{ends[0]:g} to 0, got {len(sigmas)}"
        )
    last = {level: row for row, level in enumerate(table.level.tolist())}
    begins = {last[level]: i for i, level in enumerate(ends[:-1])}
    stage = np.maximum(np.cumsum([row in begins for row in range(len(table))]) - 1, 0)
    stage = tuple(stage.tolist())
    return SigmaPlan(sigmas, table, ends, stage, begins, _draws(table, stage))


@functools.lru_cache(maxsize=64)
def stage_plan(
    name: str, path: str, sigmas: tuple[float, ...], stages: int | None, *, inner: int, tau: float,
    gamma: float = 2.0, accept: str = "trapezoid",
) -> SigmaPlan:  # fmt: skip
    """Stages of a reverse transition kernel: one per interval of positive sigmas, or `stages`."""
    found = levels_of(path, sigmas)
    found.require_falling(f"{name} samples kernels of the reverse process")
    ends = found.sigmas
    rtk.check_count(stages=stages, inner=inner)
    if inner is None:
        raise ValueError("inner must be an integer of 1 or more, got None")
    to_data = ends[-1:] == (0.0,)
    positive = ends[:-1] if to_data else ends
    if len(positive) < 2:
        return solver_plan("ddpm", path, sigmas)
    count = len(positive) - 1
    place = np.arange(count + 1) if stages is None else np.linspace(0, count, int(stages) + 1)
    grid = np.array(positive)
    if stages is not None:
        grid = np.exp(np.interp(place, np.arange(count + 1), np.log(grid)))
        grid[0], grid[-1] = positive[0], positive[-1]
    first = np.floor(place[:-1]).astype(int).tolist() + [count] * to_data
    plan = rtk.Plan(len(grid) - 1, int(inner), "ancestral", to_data)
    if name == "rtk-uld":
        builder = TableBuilder(get_path(path), "sample", name)
        rtk_uld.rows(builder, grid, [plan.inner] * plan.stages, gamma, tau)
        table = builder.finish(grid[-1] if to_data else None, op="uld")
        rows = 1 + plan.inner
    else:
        cost = 1 + (accept == "simpson")
        adjusted = metropolis.Plan(plan.stages, plan.inner, cost, "ancestral", to_data)
        where = (get_path(path), "sample", lambda n: grid)
        table = metropolis.langevin_table(name, *where, adjusted, tau, accept)
        rows = 1 + plan.inner * (1 + cost)
    stage = tuple(row // rows for row in range(len(table)))
    begins = {j * rows: found.interval[i] for j, i in enumerate(first)}
    levels = (*grid.tolist(), *([0.0] if to_data else []))
    return SigmaPlan(sigmas, table, levels, stage, begins, _draws(table, stage))


def _draws(table: StepTable, stage: tuple[int, ...]) -> tuple[dict, ...]:
    """The normals of each row, and the parts of their stages' intervals."""
    uses = {name: table.column(name) != 0 for names in NORMALS.values() for name in sum(names, ())}
    slots: dict[int, list[tuple[int, str]]] = {}
    for row, op in enumerate(table.op):
        for name, columns in zip(("noise", "noise2"), NORMALS.get(op, ()), strict=False):
            if any(uses[column][row] for column in columns):
                slots.setdefault(stage[row], []).append((row, name))
    found: list[dict] = [{} for _ in stage]
    for taken in slots.values():
        for k, (row, name) in enumerate(taken):
            found[row][name] = (k / len(taken), (k + 1) / len(taken))
    return tuple(found)
