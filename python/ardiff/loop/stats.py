"""What a run cost and how its proposals fared."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..tables.ragged import RaggedTable
from ..tables.table import StepTable
from .divergence import ALL_FINITE, Nonfinite
from .ladder import Ladder
from .lookahead import Rounds

if TYPE_CHECKING:
    from .run import Decision

LOW, HIGH = 0.02, 0.99  # acceptance rates beyond which a step size is taken for a wrong one
FEW, MANY = 8, 64  # decisions that say something, and that say enough
_ADAPT = 'or find it with ardiff.adapted_solver or adapt="sample"'
LOG_ALPHA_EDGES = (-16.0, -8.0, -4.0, -2.0, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0)


class AcceptanceWarning(UserWarning):
    """The proposals of a run were nearly all rejected, or nearly all accepted."""


@dataclass(frozen=True)
class SampleStats:
    """What a run cost.

    Attributes:
        calls: model calls, counted at the model (guidance makes two or three per row). Of a run
            with a lookahead the mean over the samples of the states at which the model was called.
        seconds: wall time of the run.
        acceptance: acceptance rate of each stage, float64 `[stages]`; None for solvers without an
            accept step. With a learned or a guided score, which need be no gradient, it is the rate
            of the rule, not of an exact chain.
        rejected_nonfinite: proposals rejected for NaN or inf.
        log_alpha_histogram: int64 `[12]`, log acceptance ratios above -inf between the neighbouring
            :data:`LOG_ALPHA_EDGES` and beyond them; or None.
        decisions: int64 `[stages]`, proposals decided in each stage; or None.
        step_scale: float32 `[B]`, the factor on tau that each sample adapted to; or None.
        expected_acceptance: float64 `[stages]`, the mean of min(1, e^log_alpha): `acceptance`
            without the chance of the decisions, and without the balls of ``rtk-mala-projected``; or
            None.
        nonfinite: the samples that are NaN or infinite, and the first step at which they were.
        rounds: model calls one after another, those of guidance together: what a run waits for. Of
            a run with a lookahead those of the sample that took most.
        lookahead: what the rounds of each patch did, of a run with a lookahead.
    """

    calls: float
    seconds: float
    acceptance: Tensor | None = None
    rejected_nonfinite: int = 0
    log_alpha_histogram: Tensor | None = None
    decisions: Tensor | None = None
    step_scale: Tensor | None = None
    expected_acceptance: Tensor | None = None
    nonfinite: Nonfinite = ALL_FINITE
    rounds: int = 0
    lookahead: tuple[Rounds, ...] = ()


def stages_of(table: StepTable | RaggedTable | Ladder, batch: int) -> np.ndarray:
    """The stage of each sample at each iteration, int64 `[iterations, B]`; -1 off accept rows."""
    tables = [table] if isinstance(table, StepTable) else list(table.tables)
    if isinstance(table, Ladder):
        tables = tables[:1]
    stages = np.full((max(len(t) for t in tables), len(tables)), -1)
    for column, each in enumerate(tables):
        stages[each.accept_rows, column] = each.stage
    if isinstance(table, RaggedTable):
        return stages[:, table.index.numpy()]
    return np.repeat(stages, batch, 1)


def _on_host(parts: list[Tensor]) -> np.ndarray:
    """Tensors of one shape stacked: by NumPy, so that a scheduler's last step runs no further op of
    torch; from a GPU in one copy."""
    if parts[0].is_cpu:
        return np.stack([part.numpy() for part in parts])
    return torch.stack(parts).cpu().numpy()


def collect(
    table: StepTable | RaggedTable | Ladder,
    calls: int,
    seconds: float,
    decisions: list[Decision] | None,
) -> SampleStats:
    """The statistics of a finished run; `decisions` None for tables without accept rows."""
    if not decisions:
        return SampleStats(calls, seconds)
    accepted = _on_host([d.accepted for d in decisions])
    log_alpha = _on_host([d.log_alpha for d in decisions])
    stage = stages_of(table, accepted.shape[1])[[d.iteration for d in decisions]]
    decided = ~np.isnan(log_alpha) & (stage >= 0)
    count = np.bincount(stage[decided])
    taken = np.bincount(stage[decided], accepted[decided], minlength=len(count))
    expected = np.exp(np.minimum(log_alpha[decided].astype(np.float64), 0))
    expected = np.bincount(stage[decided], expected, minlength=len(count))
    finite = decided & (log_alpha > -np.inf)  # +inf: accepted, from a state without density
    bins = np.searchsorted(np.float32(LOG_ALPHA_EDGES), log_alpha[finite], side="right")
    with np.errstate(invalid="ignore"):  # a stage in which nothing was decided has no rate
        rates = taken / count, expected / count
    return SampleStats(
        calls,
        seconds,
        torch.from_numpy(rates[0]),
        int((decided & ~finite).sum()),
        torch.from_numpy(np.bincount(bins, minlength=len(LOG_ALPHA_EDGES) + 1)),
        torch.from_numpy(count),
        table.scales() if isinstance(table, Ladder) else None,
        torch.from_numpy(rates[1]),
    )


def pool(calls: int, seconds: float, runs: list[SampleStats]) -> SampleStats:
    """The statistics of several runs, such as the patches of an image, as one."""
    if not runs:
        return SampleStats(calls, seconds)
    stages = max(len(run.decisions) for run in runs)
    count = torch.zeros(stages, dtype=torch.int64)
    taken, expected = torch.zeros(2, stages, dtype=torch.float64)
    for run in runs:
        count[: len(run.decisions)] += run.decisions
        taken[: len(run.decisions)] += run.acceptance * run.decisions
        expected[: len(run.decisions)] += run.expected_acceptance * run.decisions
    histogram = torch.stack([run.log_alpha_histogram for run in runs]).sum(0)
    rejected = sum(run.rejected_nonfinite for run in runs)
    return SampleStats(
        calls, seconds, taken / count, rejected, histogram, count,
        expected_acceptance=expected / count,
    )  # fmt: skip


def warn_of_acceptance(stats: SampleStats, solver: str, stacklevel: int = 3) -> None:
    """Warns, once for a run, of stages that reject nearly all proposals or of a run that accepts
    nearly all.

    Where no stage has :data:`FEW` decisions all stages are taken together. Of fewer than
    :data:`MANY` the expected acceptance counts alone, since none may be taken by chance, and too
    high an acceptance is not told.
    """
    count = stats.decisions
    if count is None or int(count.sum()) < FEW:
        return
    rates, stages = torch.stack([stats.acceptance, stats.expected_acceptance]), len(count)
    if int(count.max()) < FEW:
        rates = (rates.nan_to_num() * count).sum(1, keepdim=True) / count.sum()
        count = count.sum(0, keepdim=True)
    rate = torch.where(count < MANY, rates[1], rates.amin(0))
    judged = count >= FEW
    low = (judged & (rate < LOW)).nonzero().flatten().tolist()
    if low and 2 * stats.rejected_nonfinite > int(count.sum()):
        message = "most are NaN or inf, as the model's outputs or the energies are"
    elif low:
        message = f"tau is too large for this model, pass a smaller one, {_ADAPT}"
    elif int(count.sum()) >= MANY and bool((rate[judged] > HIGH).all()):
        message = f"tau could be larger, so that a step moves more: pass a larger one, {_ADAPT}"
    else:
        return
    if len(low) == len(count) or not low:
        share, place = float(rate[judged].mean()), "all stages"
    else:
        share, place = float(rate[low[0]]), f"stage {low[0]} of {stages}"
        place += f" and in {len(low) - 1} more" if len(low) > 1 else ""
    message = f"{solver} accepts {share:.3g} of its proposals in {place}: {message}"
    warnings.warn(message, AcceptanceWarning, stacklevel=stacklevel)
