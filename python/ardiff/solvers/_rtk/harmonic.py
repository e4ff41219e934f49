"""Reverse transition kernels in posterior coordinates, with one model call per stage.

With y = x / alpha, s = sigma / alpha and D(y, s) = E[x0 | y], a stage from a to b has
k = (s_b / s_a)^2, V = s_b^2 (1 - k), m(D) = k y_a + (1 - k) D and starts at

    z = m(De) + sqrt(V) n,    De = D_a + h / (2 h') (D_a - D_prev),    h = log(s_a / s_b),

an ancestral step of second order (h' and D_prev of the stage before; De = D_a in the first). In
q = (z - m(De)) / sqrt(V) the known Gaussian is N(0, I) and the model enters by the residual force
F = (1 - k) (D_b(z) - De) / sqrt(V). An inner step, with e = e^-tau,

    q <- e q + gain F + sqrt(1 - e^2) xi,

is made in the stages with s_b in a window, and D_b(z) serves as the next stage's D_a. Where none is
on a grid given by its name, the nearest level is moved to the window's edge; on levels given one by
one, and where the grid's ends do not enclose the window, a warning says that there is none.

In z an inner step reads z <- e z + T + gain (1 - k) D_b + sqrt(V (1 - e^2)) xi with
T = (1 - e) k y_a + (1 - e - gain) (1 - k) De. As `diffusion_step` rows, with D_a in memory and
D_prev in memory2 between stages:

    start  z := k y_a + (1 - k) De + sqrt(V) n     no call if the stage before made an inner step
           memory2 := T without its part in D_a
    inner  z := e z + gain (1 - k) D_b + (the part of T in D_a) + memory2 + noise    one call, at b
           memory := D_b, memory2 := D_a

with y = x / alpha written out in the coefficients, so that the state is the path's own x.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...tables.paths import Path, Transition, data_coefficients, transition
from ...tables.table import StepTable, TableBuilder
from . import stages as rtk

WARM_STARTS = ("second-order", *rtk.WARM_STARTS)

Mean = tuple[float, float, float]  # of a start: on x_a, on De, and the noise's standard deviation


@dataclass(frozen=True)
class Inner:
    """An inner step: e^-tau, the gain on F, the window in which it is made, how a stage starts."""

    decay: float
    gain: float
    window: rtk.Window
    warm_start: str

    def start(self, t: Transition) -> Mean:
        """Of a stage in the window."""
        if self.warm_start == "gaussian-factor":
            rtk.require_anchor(t)
            return 1 / t.r, 0.0, float(np.sqrt(t.s2)) / t.r
        return ancestral(t)

    def on_data(self, t: Transition) -> float:
        """The weight of De in T."""
        return (1 - self.decay - self.gain) * rtk.ancestral(t)[1]


def ancestral(t: Transition) -> Mean:
    """The ancestral step alone."""
    return (*rtk.ancestral(t), t.width)


def check_warm_start(warm_start: str) -> str:
    """`warm_start` itself, or ValueError listing the known ones."""
    if warm_start not in WARM_STARTS:
        raise ValueError(f"unknown warm_start {warm_start!r}; known: {', '.join(WARM_STARTS)}")
    return warm_start


def count_calls(path: Path, grid: np.ndarray, window: rtk.Window, denoise_last: bool) -> int:
    """Model calls on a grid: one at a unless D_a is known, and one at b within the window."""
    calls, known = 0, False
    for a, b in zip(grid[:-1], grid[1:], strict=True):
        inside = window.holds(transition(path, a, b))
        calls += (not known) + inside
        known = inside
    return calls + denoise_last


def table(
    name: str,
    path: Path,
    prediction: str,
    levels: Callable[[int], np.ndarray],
    steps: int,
    denoise_last: bool,
    inner: Inner,
    outside: Callable[[Transition], Mean],
    extrapolates: bool,
    without: str,
) -> StepTable:
    """As many stages as `steps` calls allow; `outside(t)` is the start, and all, of the others.

    `extrapolates`: whether those take the second-order De; the others do by their warm start.
    `without`: what the solver is where no stage ends in the window.

    Warns:
        UserWarning: no stage does, though a level of a named grid is moved to have one.
    """
    grid = rtk.fit_grid(
        name, inner.window.levels(path, levels), steps + 1 - int(denoise_last),
        lambda grid: count_calls(path, grid, inner.window, denoise_last), steps,
    )  # fmt: skip
    inner.window.warn_if_empty(name, path, grid, without, stacklevel=6)
    builder, known, previous = TableBuilder(path, prediction, name), False, None
    for a, b in zip(grid[:-1], grid[1:], strict=True):
        t = transition(path, a, b)
        inside = inner.window.holds(t)
        second_order = inner.warm_start == "second-order" if inside else extrapolates
        slope = t.h / (2 * previous.h) if previous is not None and second_order else 0.0
        start = inner.start(t) if inside else outside(t)
        columns = _start_columns(prediction, t, start, slope, known, inner if inside else None)
        builder.add("diffusion", a, calls_model=not known, **columns)
        if inside:
            builder.add("diffusion", b, **_inner_columns(prediction, t, slope, inner))
        known, previous = inside, t
    return builder.finish(grid[-1] if denoise_last else None)


def _start_columns(
    prediction: str, t: Transition, start: Mean, slope: float, known: bool, inner: Inner | None
) -> dict[str, float]:
    on_x, on_data, noise = start
    on_old = -slope * on_data
    if known:  # D_a in memory; D_prev in memory2, which x_d reaches
        columns = {"x_x": on_x + on_old, "x_d": -on_old, "x_m": on_data * (1 + slope)}
    else:  # D_a from the call, D_prev in memory
        p_x, p_o = data_coefficients(prediction, t.alpha_a, t.sigma_a)
        columns = {"p_x": p_x, "p_o": p_o, "m_0": 1.0}
        columns |= {"x_x": on_x, "x_0": on_data * (1 + slope), "x_m": on_old}
    if inner is not None:
        columns["s_x"] = (1 - inner.decay) * rtk.ancestral(t)[0]
        columns["s_2" if known else "s_m"] = -slope * inner.on_data(t)
    return columns | {"x_n": noise}


def _inner_columns(prediction: str, t: Transition, slope: float, inner: Inner) -> dict[str, float]:
    p_x, p_o = data_coefficients(prediction, t.alpha_b, t.sigma_b)
    return {
        "p_x": p_x,
        "p_o": p_o,
        "x_x": inner.decay + 1,
        "x_d": -1.0,
        "x_0": inner.gain * rtk.ancestral(t)[1],
        "x_m": (1 + slope) * inner.on_data(t),
        "x_n": t.width * np.sqrt(1 - inner.decay**2),
        "m_0": 1.0,
        "s_m": 1.0,
    }
