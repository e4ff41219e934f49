"""Metropolis-adjusted inner samplers of a reverse transition kernel: plans, rows, tables.

A stage is a start, then `inner` proposals, each followed by an accept row that compares it with the
state it came from. The model output at the accepted state is carried, so that a stage costs one
call at its start's end and `inner` times the proposal's own, and neither the next stage's ancestral
start nor the last data prediction costs another.

By default energies are not needed: f_b(x) - f_b(y) is the integral of the score along the line from
x to y, by the trapezoidal rule (``accept="trapezoid"``, no further call, exact for a Gaussian) or
Simpson's (``"simpson"``, a further call halfway); ``"energy"`` takes the given energies. The
quadratic part of g is exact in each. A learned or guided score need not be the gradient of any log
density. Then the estimate depends on the path of integration, and the chain has no exact target: it
still rejects bad proposals, but do not expect exactness.

The more elements a sample has, the smaller a step must be to be accepted. In equilibrium the step
of MALA shrinks as d^-1/3 (Roberts & Rosenthal 1998) and the leapfrog step as d^-1/4 to d^-1/6, but
a stage is not in equilibrium: it starts with the variance w^2 of the ancestral step, and the kernel
is wider by what the data leave open. There log_alpha falls by about d tau^2 l^2 (1 - l) / 2, l <= 1
the kernel's curvature in units of 1 / w^2, so that MALA needs tau ~ d^-1/2 (Christensen, Roberts &
Rosenthal 2005) and a leapfrog step, the square root of it, d^-1/4. The default steps follow this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...tables.paths import Path, Transition, score_coefficients, transition
from ...tables.table import StepTable, TableBuilder
from . import stages as rtk

ACCEPTS = ("trapezoid", "simpson", "energy")
LANGEVIN_TAU, LANGEVIN_DIM = 0.4, 40
LEAPFROG_TAU, LEAPFROG_DIM = 0.7, 24


def langevin_tau(dim: int | None = None) -> float:
    """MALA's default step in envelope units for samples of `dim` elements.

    On Gaussian data of any scale the first proposal of every stage is accepted at .57 or more. It
    is 0.4 up to 40 elements, and where `dim` is None, and 0.4 (40 / dim)^(1/2) beyond.
    """
    return LANGEVIN_TAU * min(1.0, LANGEVIN_DIM / (dim or 1)) ** 0.5


def leapfrog_tau(dim: int | None = None, leapfrog: int = 2) -> float:
    """The default step of HMC with `leapfrog` steps, in envelope units for `dim` elements.

    On Gaussian data of any scale proposals are accepted at .6 or more. It is 0.7 up to 24 elements,
    and where `dim` is None. Beyond, log_alpha is about -d tau^2 l (1 - l) sin^2(T l^(1/2)) / 8 in a
    trajectory of length T = tau leapfrog: the step shrinks as d^-1/4 leapfrog^-1/2 where that is
    short, and as d^-1/2, whatever the number of steps, where it is not.
    """
    room = min(1.0, LEAPFROG_DIM / (dim or 1))
    return LEAPFROG_TAU * min(1.0, max(room**0.5, room**0.25 * (2 / leapfrog) ** 0.5))


@dataclass(frozen=True)
class Plan:
    """Stages, proposals per stage, how a stage starts; a proposal costs `cost` model calls."""

    stages: int
    inner: int
    cost: int
    warm_start: str
    denoise_last: bool

    @property
    def calls(self) -> int:
        """An ancestral start costs a call in the first stage alone; the last step none."""
        return int(self.warm_start == "ancestral") + self.stages * (1 + self.inner * self.cost)


def plan(
    name: str,
    steps: int,
    stages: int | None,
    inner: int,
    cost: int,
    warm_start: str,
    denoise_last: bool,
) -> Plan:
    """Fit stages into `steps` model calls; as many as fit when `stages` is None.

    Raises:
        ValueError: an unknown warm start, fewer than two stages, no proposal, or more calls than
            `steps`.
    """
    rtk.check_warm_start(warm_start)
    rtk.check_count(stages=stages, inner=inner)
    if stages is None:
        stages = (steps - int(warm_start == "ancestral")) // (1 + inner * cost)
        if stages < 2:
            least = Plan(2, inner, cost, warm_start, denoise_last).calls
            raise ValueError(
                f"{name} needs two stages or more: with inner={inner} proposals of {cost} calls "
                f"and a start {warm_start} that is steps >= {least}, got steps={steps}"
            )
    elif stages < 2:
        raise ValueError(f"{name} needs two stages or more, got stages={stages}")
    found = Plan(int(stages), int(inner), cost, warm_start, denoise_last)
    if found.calls > steps:
        raise ValueError(
            f"{name} with stages={stages} and inner={inner} makes {found.calls} model calls, more "
            f"than steps={steps}"
        )
    return found


def windowed_calls(path: Path, grid: np.ndarray, plan: Plan, window: rtk.Window) -> int:
    """Model calls on a grid of a table whose stages outside `window` are ancestral steps alone."""
    calls, known = 0, False
    for a, b in zip(grid[:-1], grid[1:], strict=True):
        inside = window.holds(transition(path, a, b))
        if not known and not (inside and plan.warm_start != "ancestral"):
            calls += 1
        calls += inside * (1 + plan.inner * plan.cost)
        known = inside
    return calls + (plan.denoise_last and not known)


def check_accept(accept: str) -> str:
    """`accept` itself, or ValueError listing the known rules."""
    if accept not in ACCEPTS:
        raise ValueError(f"unknown accept {accept!r}; known: {', '.join(ACCEPTS)}")
    return accept


def accept_columns(prediction: str, t: Transition) -> dict[str, float]:
    """`mala_accept` columns of G = grad g and of the score at level b."""
    s_z, s_o = score_coefficients(prediction, t.alpha_b, t.sigma_b)
    return {"g_z": -s_z, "g_d": t.r**2 / t.s2, "g_o": -s_o, "s_z": s_z, "s_o": s_o}


@dataclass(frozen=True)
class Ball:
    """The set a proposal must lie in, from the state (`step`) and from the origin (`radius`).

    Attributes:
        step: radius of B(z, r).
        radius: radius of B(0, R), or 0: then R = |m| + margin, m the mean of the stage's start.
        margin: see `radius`.
    """

    step: float
    radius: float
    margin: float


def leapfrog_move(drift: float, kick: float) -> dict[str, float]:
    """A kick and the drift after it, v -= kick G, z += drift v (see rtk.kinetic_columns)."""
    return {"z_v": drift, "z_g": drift * kick, "v_v": 1.0, "v_g": kick}


def _add_accept(builder, b, accept: str, calls_model: bool, **columns: float) -> None:
    if accept == "simpson":
        builder.add("accept", b, midpoint=True)
    builder.add("accept", b, calls_model=calls_model, **columns)


def langevin_table(
    name: str,
    path: Path,
    prediction: str,
    levels: Callable[[int], np.ndarray],
    plan: Plan,
    tau: float,
    accept: str,
    ball: Callable[[Transition], Ball] | None = None,
) -> StepTable:
    """A table of the stages of :func:`langevin_rows`, `plan.inner` proposals each."""
    grid, builder = levels(plan.stages + 1), TableBuilder(path, prediction, name)
    inner = [plan.inner] * plan.stages
    langevin_rows(builder, grid, inner, tau, plan.warm_start, accept, ball)
    return builder.finish(
        grid[-1] if plan.denoise_last else None, calls_model=False, energy=accept == "energy"
    )


def langevin_rows(
    builder: TableBuilder,
    grid: Sequence[float],
    inner: Sequence[int],
    tau: float,
    warm_start: str = "ancestral",
    accept: str = "trapezoid",
    ball: Callable[[Transition], Ball] | None = None,
) -> None:
    """Adds MALA stages: `inner[stage]` proposals of step `tau` in envelope units, and accept rows.

    With G_x, G_y the gradients of g at x and at the proposal y, the log of the acceptance ratio

        g(x) - g(y) + (|y - x + tau G_x|^2 - |x - y + tau G_y|^2) / (4 tau)

    is g(x) - g(y) + (y - x).(G_x + G_y) / 2 + tau / 4 (|G_x|^2 - |G_y|^2); by the trapezoidal rule
    its first two parts cancel.
    """
    known = False  # whether the output at the state is that of an accept row
    for a, b, count in zip(grid[:-1], grid[1:], inner, strict=True):
        t = transition(builder.path, a, b)
        limit = Ball(0.0, 0.0, 0.0) if ball is None else ball(t)
        start = rtk.overdamped_start(builder.prediction, t, warm_start)
        calls = warm_start == "ancestral" and not known
        builder.add("diffusion", a, calls_model=calls, ball_margin=limit.margin, **start)
        step = tau * t.width**2
        columns = rtk.overdamped_columns(builder.prediction, t, step)
        rule = {
            **accept_columns(builder.prediction, t),
            "c_g": step / 4,
            "r2": limit.step**2,
            "R2": limit.radius**2,
        }
        for i in range(count):
            builder.add("diffusion", b, calls_model=i == 0, saves_origin=True, **columns)
            _add_accept(builder, b, accept, True, **rule)
        known = count > 0


def hamiltonian_table(
    name: str,
    path: Path,
    prediction: str,
    grid: np.ndarray,
    plan: Plan,
    *,
    kick: float,
    drift: float,
    leapfrog: int,
    persistence: float,
    accept: str,
    window: rtk.Window = rtk.EVERYWHERE,
) -> StepTable:
    """`uld_step` rows of `leapfrog` steps kick, drift, kick, and accept rows.

    `kick` is the half kick and `drift` the drift of a step, both in units of the envelope of width
    w: v -= kick w G, z += drift w v. Neighbouring kicks are one. Between the proposals of a stage
    v <- persistence v + sqrt(1 - persistence^2) xi. The rule is the energy
    dH = g(y) - g(x) + (|v_y|^2 - |v_x|^2) / 2; a rejection turns v round. A stage outside `window`
    is an ancestral step alone, a `diffusion_step` row, of second order where the stage before was
    one too (see :mod:`ardiff.solvers._rtk.harmonic`).
    """
    builder, known, previous = TableBuilder(path, prediction, name), False, None
    for a, b in zip(grid[:-1], grid[1:], strict=True):
        t = transition(path, a, b)
        if not window.holds(t):
            slope = 0.0 if previous is None else t.h / (2 * previous.h)
            columns = rtk.extrapolated_ancestral(prediction, t, slope)
            builder.add("diffusion", a, calls_model=not known, **columns)
            known, previous = False, t
            continue
        start = rtk.kinetic_start(prediction, t, plan.warm_start)
        calls = plan.warm_start == "ancestral" and not known
        builder.add("uld", a, calls_model=calls, **start)
        known, previous = True, None
        half, move = kick * t.width, drift * t.width
        for i in range(plan.inner):
            if i > 0 and persistence < 1:
                noise = np.sqrt(1 - persistence**2)
                builder.add("uld", b, calls_model=False, z_z=1.0, v_v=persistence, v_1=noise)
            for j in range(leapfrog):
                whole = half if j == 0 else 2 * half
                columns = rtk.kinetic_columns(prediction, t, leapfrog_move(move, whole))
                calls = i == 0 or j > 0
                builder.add("uld", b, calls_model=calls, saves_origin=j == 0, **columns)
            last = rtk.kinetic_columns(prediction, t, {"v_v": 1.0, "v_g": half})
            builder.add("uld", b, **last)
            rule = {**accept_columns(prediction, t), "c_d": -0.5, "c_v": 1.0}
            _add_accept(builder, b, accept, False, **rule)
    return builder.finish(
        grid[-1] if plan.denoise_last else None, op="uld", calls_model=not known,
        energy=accept == "energy",
    )  # fmt: skip
