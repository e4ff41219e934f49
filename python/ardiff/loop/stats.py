"""What a run cost and how its proposals fared."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
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
_ADAPT = 'or find it with ardiff.calibrate, ardiff.adapted_solver or adapt="sample"'
LOG_ALPHA_EDGES = (-16.0, -8.0, -4.0, -2.0, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0)


class AcceptanceWarning(UserWarning):
    """The proposals of a run were nearly all rejected, or nearly all accepted."""


@dataclass(frozen=True)
class EnergyErrors:
    """The energy errors dH = -log_alpha of the proposals of a run, a meter of the chains' bias.

    dH = H(proposal) - H(origin), H = g(z) + |v|^2 / 2, g the negative log density of the stage's
    kernel. A proposal of MALA is a leapfrog step of sqrt(2 tau), and its log acceptance ratio -dH.

    A proposal keeps volume and is undone by turning v round. So wherever z has the law of its
    stage's kernel, the mean of e^-dH is 1, whatever the step size (Creutz 1988; Neal 2011), and dH
    has a mean of 0 or more, about half its variance. A step too large shows in a large mean of dH
    alone. A mean of e^-dH away from 1, by several standard errors, says that one of these fails:

    - z has the kernel's law. The first proposal of a stage finds the law of its start: above 1, the
      start is too wide and proposals fall towards the mode; below 1, it is too narrow. The later
      the proposal, the nearer to 1. So it is 1 where the ancestral start is the kernel.
    - dH is exact. ``accept="trapezoid"`` is so for a Gaussian alone; see whether ``"simpson"``
      changes it.
    - the score is a gradient. A learned or a guided one need not be.

    Where dH varies by much more than 1, a few proposals make most of the mean of e^-dH, and it says
    little: look at the quantiles. Unadjusted solvers compute no energies. An OBABO step is a
    leapfrog step between refreshes of v: that of ``rtk-hmc`` with ``leapfrog=1`` and its `tau`.

    Attributes:
        values: float32 `[n]`, dH of the proposals decided, where finite, in order of decision.
        stage: int64 `[n]`, their stages.
        stages: how many there are.

    Example:
        The data are the point 0, so that the ancestral start is the kernel itself:

        >>> import ardiff
        >>> _, stats = ardiff.sample(
        ...     lambda x, level, condition: 0 * x, (500, 4), "edm", "sample", "rtk-hmc", 14,
        ...     seed=0, return_stats=True,
        ... )
        >>> mean, error = stats.energy_errors.mean_exp()
        >>> bool(((mean - 1).abs() < 5 * error).all())
        True
    """

    values: Tensor
    stage: Tensor
    stages: int

    def mean(self) -> Tensor:
        """Mean of dH, float64 `[stages]`, NaN where a stage has no proposal."""
        return self._mean(self.values.double())

    def quantiles(self, at: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)) -> Tensor:
        """Quantiles of dH, float64 `[stages, len(at)]`.

        Raises:
            ValueError: a quantile outside [0, 1].
        """
        if not all(0 <= each <= 1 for each in at):
            raise ValueError(f"quantiles are numbers in [0, 1], got {list(at)}")
        found = torch.full((self.stages, len(at)), torch.nan, dtype=torch.float64)
        for row, stage in zip(found, range(self.stages), strict=True):
            of_stage = self.values[self.stage == stage].double().numpy()
            if len(of_stage):  # NumPy's, since torch's takes no more than 2^24 numbers
                row.copy_(torch.from_numpy(np.quantile(of_stage, at)))
        return found

    def mean_exp(self) -> tuple[Tensor, Tensor]:
        """Mean of e^-dH and its standard error, float64 `[stages]` each.

        The error takes proposals as independent, which those of one sample in a stage are not.
        """
        ratio = torch.exp(-self.values.double())
        mean, square = self._mean(ratio), self._mean(ratio**2)
        count = torch.bincount(self.stage, minlength=self.stages)
        return mean, ((square - mean**2).clamp(min=0) / count).sqrt()

    def _mean(self, of: Tensor) -> Tensor:
        total = torch.zeros(self.stages, dtype=torch.float64).index_add_(0, self.stage, of)
        return total / torch.bincount(self.stage, minlength=self.stages)


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
        energy_errors: :class:`EnergyErrors` of the proposals, a meter of the chains' bias; or None.
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
    energy_errors: EnergyErrors | None = None
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
    known = finite & (log_alpha < np.inf)
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
        EnergyErrors(
            torch.from_numpy(-log_alpha[known]), torch.from_numpy(stage[known]), len(count)
        ),
    )  # fmt: skip


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
    errors = [run.energy_errors for run in runs]
    return SampleStats(
        calls, seconds, taken / count, rejected, histogram, count,
        expected_acceptance=expected / count,
        energy_errors=EnergyErrors(
            torch.cat([each.values for each in errors]), torch.cat([each.stage for each in errors]),
            stages,
        ),
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
