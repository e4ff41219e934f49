"""What a calibration found, stage by stage: a table to sample with, and a report."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from ..tables.table import StepTable


@dataclass(frozen=True)
class StageSetting:
    """The step of one stage and what it follows from; curvatures in units of the envelope.

    Attributes:
        level, sigma: of the cleaner end of the stage.
        width: w of the stage's envelope.
        curvature: L, the largest of -log p at the level, in 1 / x^2; floor: the smallest.
        highest, median, lowest: of the kernel, w^2 times the Hessian of g: the largest over the
            samples, the median over samples of each one's largest, the smallest over the samples.
        asymmetry: of the Hessian, 0 for a score that is a gradient.
        tau: in units of the envelope; gamma: the friction, None for solvers without.
        predicted: acceptance that the curvature lets expect; measured: that of the last run with
            this tau. None for solvers that accept everything.
        radius: spectral radius of the step on the curvatures found; error: how far the second
            moment after the stage is from the kernel's, over it, in the mean over the spectrum
            found, as predicted. None for solvers that accept and reject.
        note: what is peculiar, or "".
    """

    level: float
    sigma: float
    width: float
    curvature: float
    floor: float
    highest: float
    median: float
    lowest: float
    asymmetry: float
    tau: float
    gamma: float | None = None
    predicted: float | None = None
    measured: float | None = None
    radius: float | None = None
    error: float | None = None
    note: str = ""

    @property
    def condition(self) -> float:
        """Of the kernel's curvature, infinite where the kernel is not log-concave."""
        return self.highest / self.lowest if self.lowest > 0 else math.inf


@dataclass(frozen=True)
class Calibration:
    """What :func:`ardiff.calibrate` found.

    Attributes:
        table: to sample with, ``ardiff.sample(..., table=found.table)``.
        stages: a :class:`StageSetting` for each stage with inner steps.
        target: the acceptance aimed at, None for solvers that accept everything.
        calls: model calls in all; probe_calls: those before the first run of a table.
        states: at which the model was evaluated, over all calls.
        runs: of a whole table, to measure and correct.
    """

    table: StepTable
    stages: tuple[StageSetting, ...]
    target: float | None
    calls: int
    probe_calls: int
    states: int
    runs: int

    @property
    def acceptance(self) -> float | None:
        """The mean of the measured acceptance over the stages."""
        if self.target is None:
            return None
        return sum(stage.measured for stage in self.stages) / len(self.stages)

    def report(self) -> str:
        """A line for each stage, and what it cost."""
        adjusted = self.target is not None
        names = ["stage", "level", "L", "kernel's curvature", "asym.", "tau"]
        names += ["gamma"] * (self.stages[0].gamma is not None)
        names += ["predicted", "accepted"] if adjusted else ["radius", "error"]
        rows = [[*names, ""]]
        for number, stage in enumerate(self.stages):
            ends = f"{stage.lowest:.2g} to {stage.highest:.2g}"
            row = [str(number), f"{stage.level:.4g}", f"{stage.curvature:.3g}", ends]
            row += [f"{stage.asymmetry:.3f}", f"{stage.tau:.3g}"]
            row += [] if stage.gamma is None else [f"{stage.gamma:.3g}"]
            if adjusted:
                row += [f"{stage.predicted:.2f}", f"{stage.measured:.2f}"]
            else:
                row += [f"{stage.radius:.2f}", f"{stage.error:.3f}"]
            rows.append([*row, stage.note])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join([*(v.rjust(w) for v, w in zip(row[:-1], widths, strict=False)), row[-1]])
            for row in rows
        ]
        of = f"{self.table.solver} on {self.table.path}: {self.table.calls} model calls a run"
        if adjusted:
            of += f", accepts {self.acceptance:.2f} in the mean of {len(self.stages)} stages"
        cost = f"calibrated in {self.calls} calls, {self.probe_calls} of them before the first of "
        cost += f"{self.runs} runs: {self.states} states in all"
        return "\n".join([of, *(line.rstrip() for line in lines), cost])

    __str__ = report

    def as_dict(self) -> dict[str, Any]:
        """What :meth:`report` shows, for JSON; the table is saved by its own ``save``."""
        return {
            "solver": self.table.solver,
            "path": self.table.path,
            "prediction": self.table.prediction,
            "table_calls": self.table.calls,
            "target": self.target,
            "acceptance": self.acceptance,
            "calls": self.calls,
            "probe_calls": self.probe_calls,
            "states": self.states,
            "runs": self.runs,
            "stages": [dataclasses.asdict(stage) for stage in self.stages],
        }
