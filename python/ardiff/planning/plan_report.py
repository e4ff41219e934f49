"""What a plan has found, as text for people and as figures for JSON."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .curvature import Curvature
from .kl_bound import KLBound
from .plan_file import SamplePlan
from .recommend import Recommendation
from .stability import StepCheck
from .theory import CONDITION, EXACT, RATES, Method, Setting
from .timing import Timing


@dataclass(frozen=True)
class PlanReport:
    """The theory's figures, the check of the inner steps, and what to use.

    Attributes:
        setting, path, horizon: what the theory is asked about; T is that of the noisiest level.
        curvature: measured, from which L is; None where it was given.
        methods: of :func:`ardiff.planning.theory.methods`.
        bounds: the KL bound of the theory's own DDPM, and of the recommended number of calls.
        kernel: (low, high), curvature of the kernels at the theory's eta, in OU units.
        checks: inner steps of the theory's size on `kernel`.
        defaults: inner steps of the solvers' default size, in units of the stage's envelope.
        recommendation: from measured data.
        budget: a sentence that says where the number of calls is from.
        timing: measured, where a time was asked for.
        sample: what a plan file holds.
    """

    setting: Setting
    path: str
    horizon: float
    curvature: Curvature | None
    methods: tuple[Method, ...]
    bounds: dict[str, KLBound]
    kernel: tuple[float, float]
    checks: tuple[StepCheck, ...]
    defaults: tuple[StepCheck, ...]
    recommendation: Recommendation
    budget: str
    timing: Timing | None
    sample: SamplePlan

    def as_dict(self) -> dict[str, Any]:
        """All figures, for JSON; `exact` and `rates` say which are which."""
        return {
            "setting": asdict(self.setting),
            "path": self.path,
            "horizon": self.horizon,
            "curvature": None if self.curvature is None else self.curvature.as_dict(),
            "exact": list(EXACT),
            "rates": list(RATES),
            "methods": {method.name: asdict(method) for method in self.methods},
            "kl_bound": {name: bound.as_dict() for name, bound in self.bounds.items()},
            "kernel_curvature": list(self.kernel),
            "condition_number": self.condition,
            "inner_steps": [asdict(check) for check in self.checks],
            "default_inner_steps": [asdict(check) for check in self.defaults],
            "budget": self.budget,
            "timing": None if self.timing is None else asdict(self.timing),
            "recommendation": asdict(self.recommendation),
            "sample": asdict(self.sample),
        }

    @property
    def condition(self) -> float | None:
        """high / low of `kernel`; None where no number is, the kernel not being log-concave."""
        low, high = self.kernel
        return high / low if low > 0 else None

    def __str__(self) -> str:
        parts = [self._setting(), self._theory(), self._bound(), self._steps(), self._choice()]
        return "\n\n".join(parts)

    def _setting(self) -> str:
        s = self.setting
        patches = f" in {s.patches} patches" if s.patches > 1 else ""
        source = "given" if self.curvature is None else "measured"
        line = (
            f"path {self.path}, {s.dim} elements{patches}, L = {_short(s.lipschitz)} ({source}), "
            f"eps = {s.accuracy:g}, T = {self.horizon:.3g}"
        )
        if self.curvature is None:
            return line
        about = "Curvature of -log p in 1 / x^2; the L above is the largest of all in OU units:"
        return f"{line}\n\n{about}\n{self.curvature}"

    def _theory(self) -> str:
        head = ("theory", "eta", "stages", "tau", "inner", "gamma", "calls", "K patches", "rate")
        several = self.setting.patches > 1
        rows = []
        for m in self.methods:
            unstated = several and not m.patches_from_source
            patch = f"{_short(m.patch_calls)}{'*' if unstated else ''}"
            figures = (m.eta, m.stages, m.tau, m.inner, m.gamma, m.calls)
            rows.append((m.name, *map(_short, figures), patch, m.rate))
        uld = next(m for m in self.methods if m.name == "rtk-uld")
        notes = [
            f"Exact: eta and stages of the RTK solvers, curvature within [L, 3 L] (condition "
            f"{CONDITION:g}), gamma.",
            "The rest are rates, whose constants are unknown: they are shown with constant 1, so "
            "that they say how calls grow and not how many there are.",
            f"The theorem's stages span {uld.stages * uld.eta:.3g} of OU time; the grid has "
            f"{self.horizon:.3g}.",
        ]
        if several:
            notes.append("* K times the rate of one model; its source has no rate for K patches.")
        return "\n".join([_table(head, rows), *map(_wrapped, notes)])

    def _bound(self) -> str:
        names = tuple(next(iter(self.bounds.values())).terms)
        rows = [
            (name, f"{bound.steps:.6g}", _short(bound.eta), *map(_short, bound.terms.values()),
             _short(bound.total), bound.dominant)
            for name, bound in self.bounds.items()
        ]  # fmt: skip
        head = ("KL bound", "R", "eta", *names, "sum", "largest")
        note = "All terms are rates with constant 1."
        if any(bound.total > 2 for bound in self.bounds.values()):
            note += " A sum above 2 says nothing: by Pinsker it allows every total variation."
        return "\n".join([_table(head, rows), _wrapped(note)])

    def _steps(self) -> str:
        head = ("inner step", "tau", "gamma", "radius", "verdict", "largest tau")
        low, high = self.kernel
        theory = _table(head, [_check_row(check) for check in self.checks])
        defaults = _table(head, [_check_row(check) for check in self.defaults])
        span = self.defaults[0]
        condition = "not log-concave" if self.condition is None else f"{self.condition:.3g}"
        return "\n".join([
            f"The theory's steps, on kernels of curvature {_short(low)} to {_short(high)} "
            f"(condition {condition}), in OU units:",
            theory,
            f"The solvers' defaults, in units of a stage's envelope, curvature "
            f"{_short(span.low)} to {_short(span.high)}:",
            defaults,
        ])  # fmt: skip

    def _choice(self) -> str:
        r = self.recommendation
        options = "".join(f", {name} = {value}" for name, value in r.options.items())
        ahead = "" if r.lookahead is None else f", lookahead = {r.lookahead}"
        ways, patches = 1 if self.sample.guidance is None else 2, self.setting.patches
        lines = [f"use: {r.solver}, {r.steps} steps{options}{ahead}"]
        if ways * patches > 1:
            lines[0] += f": at most {r.steps * ways * patches} model calls for a sample"
        lines += map(_wrapped, (self.budget, f"why: {r.why}"))
        rows = [(name, _short(error), _short(floor)) for name, error, floor in r.rivals]
        return "\n".join(
            [*lines, *([_table(("measured", "error", "floor"), rows)] if rows else [])]
        )


def _check_row(check: StepCheck) -> tuple[str, ...]:
    verdict = "stable" if check.stable else "UNSTABLE"
    figures = (check.tau, check.gamma)
    room = 1 - check.radius
    radius = f"1 - {room:.2g}" if 0 < room < 1e-3 else f"{check.radius:.4g}"
    return (check.solver, *map(_short, figures), radius, verdict, _short(check.largest_tau))


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, break_on_hyphens=False)


def _short(value: float | None) -> str:
    """Three digits; whole numbers below a million in full; "-" for None."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value)}"
    return f"{value:.3g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, the first and the last to the left, the others to the right."""
    lines = [tuple(head), *map(tuple, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]

    def cell(text: str, i: int) -> str:
        left = i == 0 or (i == len(head) - 1 and not _numeric(rows, i))
        return text.ljust(widths[i]) if left else text.rjust(widths[i])

    return "\n".join(
        "  ".join(cell(text, i) for i, text in enumerate(line)).rstrip() for line in lines
    )


def _numeric(rows: Sequence[Sequence[str]], column: int) -> bool:
    return all(row[column][:1] in "-0123456789." for row in rows)
