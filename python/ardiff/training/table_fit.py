"""Fits the parameters of a table to the exact ODE: Gauss-Newton without the model's gradients."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..tables.table_family import Family

Denoiser = Callable[[Tensor, Tensor], Tensor]  # D(y, s), s a scalar tensor
Trace = tuple[int, Tensor, list[Tensor]]  # a row, its y, and its D with those before
Progress = Callable[[int, int, float], None]  # iterations done, of how many, held-out error


def simulate(
    denoise: Denoiser,
    rows: Tensor,
    y: Tensor,
    noise: Tensor | None = None,
    *,
    trace: list[Trace] | None = None,
    begin: Trace | None = None,
) -> Tensor:
    """The samples of `rows` `[N, 7]` from y; `noise` are normals `[N, *y.shape]`.

    To `trace` is appended what each row begins with; a run may `begin` with such an entry.
    """
    rows = rows.to(y.dtype)
    first, y, terms = (0, y, []) if begin is None else begin
    for i in range(first, len(rows)):
        if begin is None or i > first:
            terms = [denoise(y, rows[i, 0]), *terms[:3]]
        if trace is not None:
            trace.append((i, y, terms))
        y = rows[i, 1] * y
        for weight, term in zip(rows[i, 2:6], terms, strict=False):
            y = y + weight * term
        if noise is not None:
            y = y + rows[i, 6] * noise[i]
    return y


def adams_rows(s: np.ndarray, order: int = 3) -> np.ndarray:
    """Exponential Adams-Bashforth rows of order 1 to 3 on the levels s, the last a prediction.

    With l = -log s, y_b = e^-h y_a + int_a^b e^(l - l_b) P(l) dl, P the polynomial through the
    present prediction and those before: DPM-Solver++ (Lu et al. 2022) with its integral exact.
    """
    points, weights = np.polynomial.legendre.leggauss(16)
    lam, rows = -np.log(s), []
    for i in range(len(s) - 1):
        h = lam[i + 1] - lam[i]
        at = lam[i] + h * (points + 1) / 2
        kernel = weights * h / 2 * np.exp(at - lam[i + 1])
        nodes = lam[max(i - order + 1, 0) : i + 1][::-1]
        row = np.zeros(7)
        row[0], row[1] = s[i], np.exp(-h)
        for j, node in enumerate(nodes):
            others = np.delete(nodes, j)
            row[2 + j] = kernel @ np.prod((at[:, None] - others) / (node - others), 1)
        rows.append(row)
    return np.array([*rows, [s[-1], 0, 1, 0, 0, 0, 0]])


@dataclass(frozen=True)
class Case:
    """Runs with known ends: G groups, such as data sets, of B runs each.

    Attributes:
        denoise: D(y, s) on `[G, B, d]`.
        start: y of the first row, `[G, B, d]`.
        end: where the exact ODE leads from there, `[G, B, d]`.
        spread: the squared distance from which an end counts as a different one, `[G, 1]`: beyond
            it the loss is nearly constant.
    """

    denoise: Denoiser
    start: Tensor
    end: Tensor
    spread: Tensor

    def loss(self, found: Tensor) -> Tensor:
        """Mean over the groups of log mean e2 / (1 + e2 / spread), a scalar; e2 is the squared
        distance of a sample to its end."""
        e2 = (found - self.end).square().sum(-1)
        # a table that is exact has the log of rounding, not of 0
        floor = 1e-14 * self.end.square().sum(-1).mean(1) + 1e-30
        return ((e2 / (1 + e2 / self.spread)).mean(1) + floor).log().mean()


def loss(cases: Sequence[Case], rows: Tensor) -> Tensor:
    """The mean of the cases' losses."""
    found = [case.loss(simulate(case.denoise, rows, case.start)) for case in cases]
    return torch.stack(found).mean()


def error(cases: Sequence[Case], rows: Tensor) -> float:
    """The root of the robust mean square of the distance to the exact ends: e^(loss / 2)."""
    with torch.no_grad():
        found = float(loss(cases, torch.as_tensor(rows, dtype=torch.float64)))
    return math.exp(found / 2) if math.isfinite(found) else math.inf


class Budget:
    """Iterations and seconds, whichever ends first.

    Attributes:
        iterations: at most.
    """

    def __init__(self, iterations: int, seconds: float) -> None:
        self.iterations, self._seconds, self._begin = iterations, seconds, time.monotonic()

    def share(self, iteration: int) -> float:
        """What is spent, in [0, 1]."""
        spent = (time.monotonic() - self._begin) / self._seconds
        return min(1.0, max(spent, iteration / self.iterations))


def gauss_newton(
    family: Family,
    start: Tensor,
    batches: Sequence[Sequence[Case]],
    held_out: Sequence[Case],
    budget: Budget,
    *,
    width: float = 1e-3,
    patience: int = 4,
    progress: Progress | None = None,
) -> tuple[Tensor, float]:
    """Levenberg-Marquardt (Marquardt 1963) with forward differences.

    The loss is minimised as least squares whose weights are the slope of the robust loss at the
    present ends (iteratively reweighted). An iteration shifts each parameter by `width` and runs
    the table from its row on; it takes one batch after another. After each the table is tried on
    the held-out cases; it ends where `patience` trials in a row have not been better, or with the
    budget.

    Args:
        start: parameters of `family`, float64.
        batches: the cases of each batch.
        progress: called with iterations done, iterations in all, and the least held-out error.

    Returns:
        the parameters best on the held-out cases, of the start too, and their error.
    """
    places = family.free.flatten().nonzero()[:, 0]
    now, damping = start.clone(), 1e-2
    best, least, worse = start, error(held_out, family.rows(start)), 0
    iteration = 0
    while worse < patience and budget.share(iteration) < 1:
        cases = batches[iteration % len(batches)]
        with torch.no_grad():
            matrix, slope, value = _normal_equations(family, now, cases, places, width)
            scale = matrix.diagonal().clamp(min=1e-12 * float(matrix.diagonal().max()))
            for _ in range(6):
                step = torch.linalg.solve(matrix + damping * scale.diag(), slope)
                tried = now.flatten().index_add(0, places, -step.clamp(-0.5, 0.5)).view_as(now)
                after = float(loss(cases, family.rows(tried)))
                if after < value:
                    now, damping = tried, damping / 4
                    break
                damping *= 4
                if budget.share(iteration) >= 1:
                    break
        iteration += 1
        found = error(held_out, family.rows(now))
        worse = 0 if found < least * (1 - 1e-3) else worse + 1
        if found < least:
            best, least = now.clone(), found
        if progress is not None:
            progress(iteration, budget.iterations, least)
    return best, least


def _normal_equations(
    family: Family, now: Tensor, cases: Sequence[Case], places: Tensor, width: float
) -> tuple[Tensor, Tensor, float]:
    """J^T W J and J^T W e of all cases, and their loss; J by forward differences."""
    count, values, steps = len(places), [], family.steps
    matrix = torch.zeros(count, count, dtype=torch.float64)
    slope = torch.zeros(count, dtype=torch.float64)
    shifted = [now.flatten().index_add(0, p, now.new_tensor([width])) for p in places.split(1)]
    for case in cases:
        trace: list[Trace] = []
        at = simulate(case.denoise, family.rows(now), case.start, trace=trace)
        values.append(case.loss(at))
        e = (at - case.end).double()
        e2 = e.square().sum(-1)
        robust = e2 / (1 + e2 / case.spread)
        # the slope of log mean f(e2) in e2, of each group
        weight = (1 + e2 / case.spread) ** -2 / (robust.mean(1, keepdim=True) + 1e-30)
        weight = (weight / (e2.shape[1] * e2.shape[0] * len(cases))).sqrt()[..., None]
        columns = []
        for place, parameters in zip(places.tolist(), shifted, strict=True):
            rows = family.rows(parameters.view_as(now))
            moved = simulate(case.denoise, rows, case.start, begin=trace[place % steps])
            columns.append((weight * ((moved - at).double() / width)).flatten())
        jacobian = torch.stack(columns)
        matrix += jacobian @ jacobian.T
        slope += jacobian @ (weight * e).flatten()
    return matrix, slope, float(torch.stack(values).mean())
