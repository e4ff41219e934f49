"""`learn_table`: fits a table of few steps to a model; samples end where the model's own ODE ends.

The coordinates are y = x / alpha and s = sigma / alpha, with D(y, s) = E[x0 | y]. From addressed
starting points a teacher, an exponential Adams-Bashforth method of third order with many steps,
follows the probability-flow ODE dy / d log s = y - D. The table's levels and weights
(:class:`ardiff.tables.table_family.Family`) are then fitted to the teacher's ends by Gauss-Newton,
beginning from the standard solver and grid that is best on held-out points. The idea of fitting a
few-step solver to a model is that of, among others, Bespoke Solvers (Shaul et al. 2023) and
DPM-Solver-v3 (Zheng et al. 2023); the family, the loss and the method of fitting are our own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..loop.checks import check_signature
from ..loop.model_calls import CountedModel
from ..loop.run import run
from ..noise import initial_state, make_key, make_stream
from ..solvers import SOLVERS, solver
from ..tables import ratio_rows
from ..tables.paths import Path, check_prediction, data_coefficients, get_path
from ..tables.table import StepTable
from ..tables.table_family import Family
from .table_fit import Budget, Case, Progress, adams_rows, error, gauss_newton, simulate
from .table_plot import svg

FIRST_ID = 2**42  # of the starting points, far from the ids that samples begin with
LAST = 0.0015  # sigma / alpha of the teacher's last level
GAIN = 0.99  # a learned table has at most this share of its start's error, or the start is returned
_GRIDS = (
    {"grid": "log-snr"},
    {"grid": "log-snr", "ratio_min": 0.02},
    {"grid": "karras"},
)


@dataclass(frozen=True)
class LearnedTable:
    """What :func:`learn_table` found.

    Attributes:
        table: the table, learned or the start.
        learned: whether it was learned; False where no gain was found, and `table` is the start.
        rows: float64 `[steps, 7]`, the table in y and s, see :mod:`ardiff.tables.ratio_rows`.
        error: of `table` on points that neither the fit nor its end has seen: the root of the
            robust mean square distance to the teacher's ends, in the data's units.
        start, start_error: the standard table that the fit began from, solver and grid, and its
            error on the same points.
        others: the errors of all standard tables of no more calls, by solver and grid.
        teacher_error: the distance of the teacher's ends to those of a teacher with half as many
            steps; the error of the teacher itself is less.
        calls: batches of the model that were evaluated in all.
        seconds: taken.
    """

    table: StepTable
    learned: bool
    rows: np.ndarray = field(repr=False)
    error: float
    start: str
    start_error: float
    others: dict[str, float] = field(repr=False)
    teacher_error: float
    calls: int
    seconds: float

    def __str__(self) -> str:
        """The table and its error beside those of the ten best standard tables, a line each."""
        made = "learned" if self.learned else "no gain was found, so the start is returned:"
        best = sorted(self.others.items(), key=lambda entry: entry[1])[:10]
        return "\n".join([
            f"{len(self.rows)} steps, {made} error {self.error:.3g} to the exact ODE "
            f"(teacher within {self.teacher_error:.1g}); {self.calls} calls, {self.seconds:.0f} s",
            f"start: {self.start}, {self.start_error:.3g}; of {len(self.others)} standard tables:",
            *(f"{self.error / max(e, 1e-300):8.3f} x {name} ({e:.3g})" for name, e in best),
            "".join(name.rjust(10) for name in ("s", "y", "D", "D1", "D2", "D3")),
            *("".join(f"{v:10.5f}" for v in row[:6]) for row in self.rows),
        ])  # fmt: skip

    def svg(self) -> str:
        """A drawing of levels and weights, row after row."""
        return svg(self.rows, f"{len(self.rows)} steps, {self.table.solver}")

    def save(self, path: str | FilePath) -> None:
        """Writes the table as a file that :meth:`StepTable.load` reads."""
        self.table.save(path)


class Model:
    """D(y, s) of a model on a path: what the fit calls.

    Args:
        model_fn, condition, uncond: as of :func:`ardiff.sample`.
        shape: of the batch, (B, ...).
        weight: of guidance, float32 `[B, 1]`, or None.
    """

    def __init__(
        self,
        model_fn: Any,
        shape: Sequence[int],
        path: Path,
        prediction: str,
        condition: Any,
        uncond: Any,
        weight: Tensor | None,
    ) -> None:
        self.counted = CountedModel(model_fn, tuple(shape))
        self._hoists = not callable(model_fn)
        self._path, self._prediction = path, prediction
        self._conditions, self._weight = [condition, uncond], weight

    def __call__(self, y: Tensor, s: Tensor) -> Tensor:
        """y `[1, B, d]` -> `[1, B, d]`; the level is the nearest that the path covers."""
        level = float(
            self._path.level(np.clip(float(s), self._path.ratio_min, self._path.ratio_max))
        )
        alpha, sigma = float(self._path.alpha(level)), float(self._path.sigma(level))
        p_x, p_o = data_coefficients(self._prediction, alpha, sigma)
        x = alpha * y[0]
        out = self._out(x, level, self._conditions[0])
        if self._weight is not None:
            plain = self._out(x, level, self._conditions[1])
            out = plain + self._weight * (out - plain)
        return (p_x * x + p_o * out)[None]

    def error(self, table: StepTable, case: Case) -> float:
        """The error of any table without noise, run by the product's own loop."""
        x = case.start[0] * float(table.alpha[0])
        key, stream = make_key(0, x.device), make_stream(None, len(x), 0, x.device)
        guided = {}
        if self._weight is not None:
            guided = {"uncond": self._conditions[1], "guidance": self._weight[:, 0]}
        found = run(
            table, self.counted, x, key=key, stream=stream, condition=self._conditions[0], **guided
        )
        loss = float(case.loss(found[None]))
        return math.exp(loss / 2) if math.isfinite(loss) else math.inf

    def _out(self, x: Tensor, level: float, condition: Any) -> Tensor:
        at = x.new_full((1 if self._hoists else len(x),), level)
        if self._hoists:
            return self.counted.hoist(at, condition)(0, x).float().clone()
        return self.counted(x.clone(), at, condition).float()


def standard_tables(steps: int, path: Path, prediction: str, first: float) -> dict[str, StepTable]:
    """Every solver without noise on each of three grids from the ratio `first` on, by both names,
    with at most `steps` calls; ``learned`` on its own levels, if they begin there."""
    found = {}
    for name in SOLVERS:
        if name.startswith("rtk-"):  # those whose stages add no noise are other solvers' tables
            continue
        for grid in [{}] if name == "learned" else _GRIDS:
            options = {**grid, "ratio_max": first} if grid else {}
            try:
                table = solver(name, path=path, prediction=prediction, steps=steps, **options)
            except ValueError:  # it needs more steps, or another path
                continue
            begins = math.isclose(float(path.ratio(table.level[0])), first, rel_tol=1e-6)
            if begins and not table.draws:
                found[", ".join([name, *map(str, grid.values())])] = table
    return found


def learn_table(
    model_fn: Callable,
    shape: Sequence[int],
    *,
    path: str | Path,
    prediction: str,
    steps: int = 8,
    condition: Any = None,
    uncond: Any = None,
    guidance: float | tuple[float, float] | None = None,
    start: StepTable | None = None,
    ratio_max: float = 40.0,
    teacher_steps: int = 100,
    batches: int = 4,
    iterations: int = 40,
    seconds: float = math.inf,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> LearnedTable:
    """A table of `steps` calls whose samples end where the model's own ODE ends.

    The model is called with batches of `shape` alone, without gradients: an iteration costs about
    (4 steps + 1) steps calls, and the teacher (batches + 2) times `teacher_steps`. Batches of some
    hundred points are enough for 8 steps.

    Args:
        model_fn, condition, uncond: as of :func:`ardiff.sample`; a condition with a row per sample
            has `shape[0]` rows. `condition` may be a function of the batch's number, 0 to
            batches + 1: held-out points then have conditions of their own.
        shape: (B, ...) of a batch of starting points.
        path, prediction: as of :func:`ardiff.solver`.
        steps: model calls of the table.
        guidance: weight of classifier-free guidance, or (low, high): the table serves weights
            between the two, spread evenly over the batch.
        start: a table of one call per step without noise, from which the fit begins; None tries the
            standard solvers on three grids. With `start` they are tried too, for comparison.
        ratio_max: sigma / alpha of the first level, for data of unit scale.
        teacher_steps: of the ODE that is the aim.
        batches: of starting points to fit to, each used in turn.
        iterations, seconds: the budget, whichever ends first.
        seed: of the starting points, whose ids begin at 2^42. Of each batch's worth of ids some are
            fitted to, the next decide when to end, and the last give the errors that are reported.
        progress: called with iterations done, iterations in all, and the error so far.

    Returns:
        :class:`LearnedTable`; where nothing is gained its table is the start.

    Raises:
        ValueError, TypeError: a bad argument, before the model is called; an output that does not
            fit, at the first call.
        FloatingPointError: a teacher whose ends are not finite.

    Example:
        >>> import torch
        >>> from ardiff.data.mixture import GaussianMixture
        >>> from ardiff.training.learn_table import learn_table
        >>> model = GaussianMixture([[-1.0], [1.0]], 0.04).model("flow", "flow")
        >>> found = learn_table(
        ...     model, (64, 1), path="flow", prediction="flow", steps=5, iterations=4,
        ... )
        >>> found.learned, found.table.calls, found.error < 0.8 * found.start_error
        (True, 5, True)
    """
    path, began = get_path(path), time.monotonic()
    sizes = _checked(model_fn, shape, path, prediction, steps, batches, teacher_steps, iterations)
    weight = _weights(guidance, sizes[0], device, uncond)
    if start is not None:
        ratio_max = float(path.ratio(_checked_start(start, steps, path).level[0]))
    first = min(ratio_max, path.ratio_max)
    tables = {} if start is None else {"start": start}
    tables |= standard_tables(steps, path, prediction, first)
    key, cases, models = make_key(seed, device), [], []
    for n in range(batches + 2):
        given = condition(n) if callable(condition) else condition
        model = Model(model_fn, sizes, path, prediction, given, uncond, weight)
        models.append(model)
        ids = range(FIRST_ID + n * sizes[0], FIRST_ID + (n + 1) * sizes[0])
        stream = make_stream(list(ids), sizes[0], 0, device)
        table = next(iter(tables.values()))
        y = initial_state(table, key, stream, math.prod(sizes[1:]))[None] / float(table.alpha[0])
        cases.append(_case(model, y, path, first, teacher_steps))
    *fitted, held_out, unseen = [[case] for case in cases]
    half = _case(model, unseen[0].start, path, first, teacher_steps // 2)
    coarse = math.exp(float(unseen[0].loss(half.end)) / 2)

    rows = {name: ratio_rows.from_table(table) for name, table in tables.items()}
    rows = {name: row for name, row in rows.items() if row is not None and len(row) == steps}
    tried = {name: error(held_out, row) for name, row in rows.items()}
    best = "start" if start is not None else min(tried, key=tried.get)
    family = Family(steps, rows[best][0, 0], third=steps > 16)
    parameters, _ = gauss_newton(
        family, family.parameters(rows[best]), fitted, held_out, Budget(iterations, seconds),
        progress=progress,
    )  # fmt: skip
    made = family.rows(parameters).numpy()
    errors = {name: models[-1].error(table, unseen[0]) for name, table in tables.items()}
    errors[best] = error(unseen, rows[best])
    found = error(unseen, made)
    learned = found < GAIN * errors[best]
    return LearnedTable(
        ratio_rows.to_table(made, path, prediction, "learned") if learned else tables[best],
        learned,
        made if learned else rows[best],
        found if learned else errors[best],
        best,
        errors[best],
        errors,
        coarse,
        sum(model.counted.calls for model in models),
        time.monotonic() - began,
    )


def _case(model: Model, y: Tensor, path: Path, first: float, steps: int) -> Case:
    """The teacher's ends, and the spread beyond which a distance counts as another mode."""
    last = math.log(max(LAST, path.ratio_min))
    s = np.exp(np.linspace(math.log(first), last, steps))
    with torch.no_grad():
        end = simulate(model, torch.tensor(adams_rows(s)), y)
    if not bool(end.isfinite().all()):
        raise FloatingPointError(
            f"learn_table: the teacher of {steps} steps ends at NaN or infinity; more "
            "teacher_steps may help, or the model is wrong at a level"
        )
    variance = (end - end.mean(1, keepdim=True)).square().sum(-1).mean(1, keepdim=True)
    least = 1e-8 * end.square().sum(-1).mean(1, keepdim=True) + 1e-30
    return Case(model, y, end, 0.05 * torch.maximum(variance, least))


def _checked(
    model_fn: Any,
    shape: Sequence[int],
    path: Path,
    prediction: str,
    steps: int,
    batches: int,
    teacher_steps: int,
    iterations: int,
) -> tuple[int, ...]:
    if hasattr(model_fn, "hoist"):
        pass
    elif not callable(model_fn):
        raise TypeError(
            f"learn_table: model_fn must be callable or have hoist, got {type(model_fn).__name__}"
        )
    else:
        check_signature("model_fn", model_fn, "model_fn(x, level, condition)")
    check_prediction(prediction)
    sizes = tuple(shape)
    if len(sizes) < 2 or not all(isinstance(n, int) and n > 0 for n in sizes) or sizes[0] < 8:
        raise ValueError(
            f"learn_table: shape must be (B, ...) with B >= 8 starting points, got {shape!r}"
        )
    least = {"steps": (steps, 2), "batches": (batches, 1), "teacher_steps": (teacher_steps, 8)}
    least["iterations"] = (iterations, 1)
    for name, (value, low) in least.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError(f"learn_table: {name} must be an integer >= {low}, got {value!r}")
    if teacher_steps < 4 * steps:
        raise ValueError(
            f"learn_table: teacher_steps must be at least 4 steps, {4 * steps}, got {teacher_steps}"
        )
    return sizes


def _checked_start(start: StepTable, steps: int, path: Path) -> StepTable:
    if not isinstance(start, StepTable):
        raise TypeError(f"learn_table: start must be a StepTable, got {type(start).__name__}")
    if len(start) != steps or start.draws or ratio_rows.from_table(start) is None:
        raise ValueError(
            f"learn_table: start must be a table of {steps} rows, each with one model call and "
            f"without noise, that ends with the sample, such as of dpmpp-2m; got {start.solver} "
            f"with {len(start)} rows"
        )
    if start.path != path.name:
        raise ValueError(f"learn_table: start is of path {start.path}, the model of {path.name}")
    return start


def _weights(
    guidance: float | tuple[float, float] | None, batch: int, device: Any, uncond: Any
) -> Tensor | None:
    """The guidance weight of each row, float32 `[B, 1]`."""
    if guidance is None:
        if uncond is not None:
            raise ValueError("learn_table: uncond is for guidance: pass guidance too")
        return None
    low, high = guidance if isinstance(guidance, (tuple, list)) else (guidance, guidance)
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(
            f"learn_table: guidance must be a number or (low, high), both finite, got {guidance!r}"
        )
    return torch.linspace(low, high, batch, device=device)[:, None]
