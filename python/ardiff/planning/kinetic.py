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
from ..tables.columns import COLUMNS
from ..tables.paths import Path, Transition, score_coefficients, transition
from ..tables.table import StepTable
from .calibration import StageSetting
from .stability import spectral_radius
from .stage_probe import Probe

TAUS = tuple(2 ** (k / 2) for k in range(-16, 5))  # 1/256 to 4 envelope widths
LEAST = 1 / 16  # curvature, in units of the envelope, below which gamma does not follow it
ROOM = 1.5  # times the largest curvature found, on which a step must still be stable
MANY = 1000  # stages, more than anyone takes
COARSE = 12  # stages at which the curvature is looked at before their number is picked


class Stage(NamedTuple):
    """A stage of a table: its transition, the row of its start, and its inner rows."""

    t: Transition
    start: int
    inner: slice


class KineticTable:
    """The stages of a table of kinetic rows, as linear maps.

    Attributes:
        table: as given. stages: in order.
    """

    def __init__(self, table: StepTable, path: str | Path) -> None:
        self.table = table
        self._column = {name: table.column(name) for name in COLUMNS["uld"] if name[-3:] != "_lo"}
        starts, moves = np.flatnonzero(self._column["a_z"]), self._column["v_v"] != 0
        self.stages = []
        for start, end in zip(starts, [*starts[1:], len(table)], strict=True):
            count = int(moves[start + 1 : end].sum())  # not the last data prediction, which ends v
            t = transition(path, table.level[start], table.level[start + 1])
            self.stages.append(Stage(t, int(start), slice(start + 1, start + 1 + count)))

    def matrices(self, stage: Stage, curvature: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """M `[rows, n, 2, 2]` of the inner rows at `curvature` `[n]`, and Q `[rows, 2, 2]`, in
        units of the envelope."""
        t = stage.t
        c = {name: column[stage.inner, None] for name, column in self._column.items()}
        s_z, s_o = score_coefficients(self.table.prediction, t.alpha_b, t.sigma_b)
        out = -(curvature / t.width**2 - t.r**2 / t.s2 + s_z) / s_o
        zz = c["z_z"] + c["z_d"] + c["z_o"] * out
        vz = (c["v_z"] + c["v_d"] + c["v_o"] * out) * t.width
        zv, vv = (np.broadcast_to(part, zz.shape) for part in (c["z_v"] / t.width, c["v_v"]))
        matrix = np.stack([np.stack([zz, zv], -1), np.stack([vz, vv], -1)], -2)
        z_1, z_2, v_1 = c["z_1"] / t.width, c["z_2"] / t.width, c["v_1"]
        noise = np.concatenate([z_1**2 + z_2**2, z_1 * v_1, z_1 * v_1, v_1**2], -1)
        return matrix, noise.reshape(-1, 2, 2)

    def second_moment(self, stage: Stage, curvature: np.ndarray, offset: float) -> np.ndarray:
        """E (z - mean of the kernel)^2 after the stage over the kernel's variance, float64 `[n]`.

        It is 1 where the stage draws from its kernel. `offset` is the square of the distance, over
        w^2, of the start's mean from the kernel's.
        """
        matrix, noise = self.matrices(stage, curvature)
        z_1, z_2, v_1 = (self._column[name][stage.start] for name in ("z_1", "z_2", "v_1"))
        z_1, z_2 = z_1 / stage.t.width, z_2 / stage.t.width
        moments = np.array([[offset + z_1**2 + z_2**2, z_1 * v_1], [z_1 * v_1, v_1**2]])
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
    made: dict[tuple[float, float], KineticTable] = {}
    tables, chosen = [], []
    for number, (look, stage) in enumerate(zip(looks, found, strict=True)):
        low = max(stage.lowest, LEAST)
        gamma = float(2 * 2 ** (np.rint(2 * np.log2(low)) / 4))
        values, weights = look.spectrum()
        values, offset = values.clip(LEAST), _offset(look, options.get("warm_start"))
        ends = np.linspace(low, max(low, ROOM * stage.highest), 16)
        tried = []
        for tau in TAUS:
            if (gamma, tau) not in made:
                table = make_table(name, **{**options, "gamma": gamma, "tau": tau})
                made[gamma, tau] = KineticTable(table, options["path"])
            kinetic = made[gamma, tau]
            rows = kinetic.stages[number]
            radius = spectral_radius(kinetic.matrices(rows, ends)[0])
            off = weights @ np.abs(kinetic.second_moment(rows, values, offset) - 1)
            # a lone row of OBABO turns (z, v) and damps nothing: its radius is 1, and it is stable
            tried.append((radius > 1 + 1e-9, float(off), tau, radius))
        unstable, off, tau, radius = min(tried)
        note = "no tau is stable on the curvature found" if unstable else stage.note
        tables.append(made[gamma, tau].table)
        chosen.append(replace(stage, tau=tau, gamma=gamma, radius=radius, error=off, note=note))
    return splice(tables, range(len(tables))), chosen


def _offset(look: Probe, warm_start: str | None) -> float:
    """That of :meth:`KineticTable.second_moment`: what the start's own noise leaves."""
    t = look.t
    noise = t.s2 / (t.r * t.width) ** 2 if warm_start == "gaussian-factor" else 1.0
    return max(0.0, look.spread() - noise)


def enough_stages(found: Sequence[StageSetting], path: Path) -> int:
    """The stages after which the theory asks for no more (Huang et al. 2024).

    On the Ornstein-Uhlenbeck path a stage of length log(1 + 1 / (2 L)) / 2 has a kernel of
    condition number 3 at most, where the curvature of the log-density is between -L and L. L is
    that of `found`, between its levels by log-linear interpolation, on data of any path scaled to
    the Ornstein-Uhlenbeck one.
    """
    levels = np.array([stage.level for stage in found])
    ratio = path.ratio(levels)
    size = [max(stage.curvature, -stage.floor) for stage in found]
    size = np.array(size) * (path.alpha(levels) ** 2 + path.sigma(levels) ** 2)
    times = np.log1p(ratio**2) / 2
    t, count = times[0], 1
    while t > times[-1] and count < MANY:
        at = np.exp(np.interp(-np.log(t), -np.log(times), np.log(size)))
        t, count = t - np.log1p(1 / (2 * at)) / 2, count + 1
    return count


def check_free(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """`options` themselves; ValueError where they hold what the calibration picks."""
    for option in ("tau", "gamma"):
        if options.get(option) is not None:
            raise ValueError(
                f"calibrate picks {option} of {name} itself: leave it out, or take the table of "
                f"ardiff.solver({name!r}, {option}=...)"
            )
    return options
