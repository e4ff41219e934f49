"""What the steps of an unadjusted kinetic solver do in a stage whose kernel has a given curvature.

Where the kernel is Gaussian, of curvature l in units of the envelope, a row moves (z, v) by a
matrix M(l) and adds normals of covariance Q, both read from the row's coefficients:

    out = (score - s_z z) / s_o,   score = -f z,   f = l / w^2 - r^2 / s^2.

So the second moments after the stage are known for any row of any such solver, S <- M S M^T + Q,
and so is whether a step is stable: the spectral radius of M is below 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..loop.ladder import splice
from ..solvers import solver as make_table
from ..tables.paths import Path, Transition, score_coefficients, transition
from ..tables.table import StepTable
from .calibration import StageSetting
from .stage_probe import Probe

KINETIC = ("rtk-uld", "rtk-baoab", "rtk-obabo", "rtk-ubu")
TAUS = tuple(2 ** (k / 2) for k in range(-8, 5))  # 1/16 to 4 envelope widths
LEAST = 1 / 16  # curvature, in units of the envelope, below which gamma does not follow it
ROOM = 1.5  # times the largest curvature found, on which a step must still be stable


class Stage(NamedTuple):
    """A stage of a table: its transition, the row of its start, and its inner rows."""

    t: Transition
    start: int
    inner: slice


def stages_of(table: StepTable, path: Path) -> list[Stage]:
    """The stages of a table of kinetic rows, in order."""
    starts, moves = np.flatnonzero(table.column("a_z")), table.column("v_v") != 0
    found = []
    for start, end in zip(starts, [*starts[1:], len(table)], strict=True):
        count = int(moves[start + 1 : end].sum())  # not the last data prediction, which ends v
        t = transition(path, table.level[start], table.level[start + 1])
        found.append(Stage(t, int(start), slice(start + 1, start + 1 + count)))
    return found


def step_matrices(
    table: StepTable, stage: Stage, curvature: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """M `[rows, n, 2, 2]` and Q `[rows, 2, 2]` of the inner rows at `curvature` `[n]`, in units of
    the envelope."""
    t, rows = stage.t, stage.inner
    s_z, s_o = score_coefficients(table.prediction, t.alpha_b, t.sigma_b)
    out = -(curvature / t.width**2 - t.r**2 / t.s2 + s_z) / s_o
    column = {name: table.column(name)[rows, None] for name in (
        "z_z", "z_d", "z_v", "z_o", "z_1", "z_2", "v_z", "v_d", "v_v", "v_o", "v_1",
    )}  # fmt: skip
    zz = column["z_z"] + column["z_d"] + column["z_o"] * out
    vz = (column["v_z"] + column["v_d"] + column["v_o"] * out) * t.width
    zv = np.broadcast_to(column["z_v"] / t.width, zz.shape)
    vv = np.broadcast_to(column["v_v"], zz.shape)
    matrix = np.stack([np.stack([zz, zv], -1), np.stack([vz, vv], -1)], -2)
    noise = np.stack([column["z_1"], column["z_2"], column["v_1"]])[..., 0]
    z_1, z_2, v_1 = noise[0] / t.width, noise[1] / t.width, noise[2]
    covariance = np.stack([z_1**2 + z_2**2, z_1 * v_1, z_1 * v_1, v_1**2], -1)
    return matrix, covariance.reshape(-1, 2, 2)


def spectral_radius(matrix: np.ndarray) -> float:
    """Of one step, the largest over the curvatures: that of all rows, to the power 1 / rows."""
    whole = np.broadcast_to(np.eye(2), matrix.shape[1:])
    for each in matrix:
        whole = each @ whole
    return float(np.abs(np.linalg.eigvals(whole)).max() ** (1 / len(matrix)))


def second_moment(
    table: StepTable, stage: Stage, curvature: np.ndarray, spread: float
) -> np.ndarray:
    """E (z - mean of the kernel)^2 after the stage over the kernel's variance, float64 `[n]`.

    It is 1 where the stage draws from its kernel. `spread` is the start's over w^2: 1 for the
    ancestral step, and more by the distance of its mean.
    """
    matrix, noise = step_matrices(table, stage, curvature)
    width, start = stage.t.width, stage.start
    z_1, v_1 = table.column("z_1")[start] / width, table.column("v_1")[start]
    extra = (table.column("z_1")[start] ** 2 + table.column("z_2")[start] ** 2) / width**2
    moments = np.array([[spread - 1 + extra, z_1 * v_1], [z_1 * v_1, v_1**2]])
    moments = np.broadcast_to(moments, (len(curvature), 2, 2))
    for each, added in zip(matrix, noise, strict=True):
        moments = each @ moments @ each.swapaxes(-1, -2) + added
    return moments[:, 0, 0] * curvature


def settings(
    name: str, options: dict[str, Any], looks: Sequence[Probe], found: Sequence[StageSetting]
) -> tuple[StepTable, list[StageSetting]]:
    """The table of kinetic solver `name` with gamma and tau of its own for each stage.

    gamma is 2 l^1/2, l the lowest curvature found, in half steps of an octave: critical there, and
    below critical above. tau is the one of :data:`TAUS` after which the stage's second moment is
    nearest to its kernel's, in the mean over the spectrum found, of those that are stable.
    """
    tables, chosen, settings = [], [], []
    made: dict[tuple[float, float], StepTable] = {}
    for number, (look, stage) in enumerate(zip(looks, found, strict=True)):
        low = np.clip(stage.lowest, LEAST, None)
        gamma = 2 * 2 ** (np.rint(2 * np.log2(low)) / 4)
        values, weights = look.spectrum()
        values = np.clip(values, LEAST, None)
        ends = np.linspace(low, max(low, ROOM * stage.highest), 16)
        best = None
        for tau in TAUS:
            if (gamma, tau) not in made:
                made[gamma, tau] = make_table(name, **{**options, "gamma": gamma, "tau": tau})
            table = made[gamma, tau]
            rows = stages_of(table, options["path"])[number]
            radius = spectral_radius(step_matrices(table, rows, ends)[0])
            if radius >= 1:
                continue
            off = weights @ np.abs(second_moment(table, rows, values, look.spread()) - 1)
            if best is None or off < best[0]:
                best = off, tau, radius, table
        _, tau, radius, table = best
        tables.append(table)
        chosen.append(number)
        settings.append(replace(stage, tau=tau, gamma=float(gamma), radius=radius))
    return splice(tables, chosen), settings


def check_free(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """`options` without None; ValueError where they hold what the calibration picks."""
    for option in ("tau", "gamma"):
        if options.get(option) is not None:
            raise ValueError(
                f"calibrate picks {option} of {name} itself: leave it out, or take the table of "
                f"ardiff.solver({name!r}, {option}=...)"
            )
    return options
