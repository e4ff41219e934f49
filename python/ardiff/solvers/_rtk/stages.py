"""Reverse transition kernels: stages, warm starts, and the rows of their inner samplers.

A stage goes from level a to the cleaner level b by sampling exp(-g) with

    grad g(z) = G(z) = -score_b(z) + (r^2 / s^2) (z - x_a / r),   x_a = r x_b + s eps.

It is held in centred form: the anchor is x_a / r and rows act on z - anchor. Source: the reverse
transition kernel framework (Huang et al. 2024).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...tables.paths import Path, Transition, data_coefficients, score_coefficients, transition
from ...tables.table import StepTable, TableBuilder

WARM_STARTS = ("ancestral", "gaussian-factor")
DEFAULT_INNER = 2
EDGE = 1e-9  # how far inside of a window's edge a level is put, relative: rounding must not undo it


@dataclass(frozen=True)
class Window:
    """The stages, by the ratio s_b = sigma_b / alpha_b at their cleaner level, with inner steps."""

    low: float
    high: float

    def holds(self, t: Transition) -> bool:
        return self.low <= t.sigma_b / t.alpha_b <= self.high

    def levels(self, path: Path, levels: Callable[[int], np.ndarray]) -> Callable:
        """`levels` such that a stage ends in the window, where its place is ours to choose.

        On a coarse grid the window can fall between two levels. Of a grid given by its name the
        nearest level between the ends is then moved to the window's edge; levels that the caller
        chose one by one stay, and so does a grid whose ends do not enclose the window.
        """
        if not getattr(levels, "named", False):
            return levels
        return lambda count: self._moved(path, levels(count))

    def _moved(self, path: Path, grid: np.ndarray) -> np.ndarray:
        ends = path.sigma(grid[1:]) / path.alpha(grid[1:])
        low, high = self.low * (1 + EDGE), self.high * (1 - EDGE)
        inside = (self.low <= ends) & (ends <= self.high)
        if len(grid) < 3 or inside.any() or not ends[-1] < low < path.ratio(grid[0]) or low > high:
            return grid
        edge = np.clip(ends[:-1], low, high)
        nearest = np.argmin(np.abs(np.log(edge / ends[:-1])))
        grid = grid.copy()
        grid[1 + nearest] = path.level(edge[nearest])
        return grid

    def warn_if_empty(
        self, name: str, path: Path, grid: np.ndarray, without: str, stacklevel: int
    ) -> None:
        """Warns where no stage of a grid ends in the window; `without` says what remains then.

        `stacklevel`: of the caller of `ardiff.solver`.
        """
        ends = path.sigma(grid[1:]) / path.alpha(grid[1:])
        if not ((self.low <= ends) & (ends <= self.high)).any():
            around = [*ends[ends > self.high][-1:], *ends[ends < self.low][:1]]
            warnings.warn(
                f"{name}: no stage ends at a sigma / alpha in the window [{self.low:g}, "
                f"{self.high:g}], the nearest are {' and '.join(f'{end:.3g}' for end in around)}. "
                f"So it makes no inner step and is {without}: take more steps, give a level in the "
                "window, or pass window_low and window_high that hold one",
                stacklevel=stacklevel,
            )


EVERYWHERE = Window(0.0, np.inf)


def window(name: str, low: float, high: float) -> Window:
    """The window [low, high]; ValueError unless 0 <= low <= high."""
    if isinstance(low, str) or isinstance(high, str) or not 0 <= low <= high:
        raise ValueError(
            f"{name}: expected 0 <= window_low <= window_high, got {low!r} and {high!r}"
        )
    return Window(low, high)


def fit_grid(
    name: str,
    levels: Callable[[int], np.ndarray],
    most: int,
    calls: Callable[[np.ndarray], int],
    steps: int,
) -> np.ndarray:
    """The longest grid of at most `most` levels on which a table makes at most `steps` calls.

    Raises:
        ValueError: no grid of two levels or more fits.
    """
    refused = None
    for count in range(most, 1, -1):
        try:
            grid = levels(count)
        except ValueError as error:  # levels given by the user, of another number
            refused = refused or error
            continue
        if calls(grid) <= steps:
            return grid
    raise refused or ValueError(f"{name} does not fit a stage into steps={steps} model calls")


@dataclass(frozen=True)
class Plan:
    """How many stages, inner steps per stage, how a stage starts, whether a data step ends it."""

    stages: int
    inner: int
    warm_start: str
    denoise_last: bool

    @property
    def calls(self) -> int:
        """Model calls: an ancestral start costs one, a Gaussian-factor start none."""
        start = self.warm_start == "ancestral"
        return self.stages * (self.inner + start) + self.denoise_last


def plan(
    name: str,
    steps: int,
    stages: int | None,
    inner: int | None,
    warm_start: str,
    denoise_last: bool,
) -> Plan:
    """Fit stages and inner steps into `steps` model calls.

    With neither given, inner is 2 and there are as many stages as fit; with `stages` alone, inner
    is as large as fits. `warm_start` is ``ancestral``, or ``gaussian-factor``: each stage starts
    from noise alone, ignoring the model's current estimate, and so needs many inner steps, such as
    20 stages of 30 (two are too few).

    Raises:
        ValueError: an unknown warm start, fewer than two stages, no inner step, or more calls than
            `steps`.
    """
    check_warm_start(warm_start)
    check_count(stages=stages, inner=inner)
    start = int(warm_start == "ancestral")
    room = steps - int(denoise_last)
    if stages is not None and stages < 2:
        raise ValueError(f"{name} needs two stages or more, got stages={stages}")
    if inner is None:
        inner = DEFAULT_INNER if stages is None else room // stages - start
        if inner < 1:
            raise ValueError(
                f"{name} with stages={stages} has no room for an inner step in steps={steps} "
                f"calls; it needs steps >= {stages * (1 + start) + int(denoise_last)}"
            )
    if stages is None:
        stages = room // (inner + start)
        if stages < 2:
            raise ValueError(
                f"{name} needs two stages or more: with inner={inner} and a start {warm_start} "
                f"that is steps >= {2 * (inner + start) + int(denoise_last)}, got steps={steps}"
            )
    found = Plan(int(stages), int(inner), warm_start, denoise_last)
    if found.calls > steps:
        raise ValueError(
            f"{name} with stages={stages} and inner={inner} makes {found.calls} model calls, more "
            f"than steps={steps}"
        )
    return found


def check_warm_start(warm_start: str) -> None:
    """ValueError for an unknown warm start, listing the known ones."""
    if warm_start not in WARM_STARTS:
        raise ValueError(f"unknown warm_start {warm_start!r}; known: {', '.join(WARM_STARTS)}")


def check_count(**values: int | None) -> None:
    """ValueError unless every value is None or an integer of 1 or more."""
    for option, value in values.items():
        if value is not None and (
            isinstance(value, (bool, str)) or int(value) != value or value < 1
        ):
            raise ValueError(f"{option} must be an integer of 1 or more, got {value!r}")


def check_positive(name: str, **values: float) -> None:
    """ValueError unless every value is a positive finite number."""
    for option, value in values.items():
        if isinstance(value, (str, bool)) or not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name}: {option} must be positive and finite, got {value!r}")


def ancestral(t: Transition) -> tuple[float, float]:
    """(on x_a, on x0) of the mean of the ancestral step; its standard deviation is ``t.width``."""
    return t.r * (t.sigma_b / t.sigma_a) ** 2, t.alpha_b * t.s2 / t.sigma_a**2


def extrapolated_ancestral(prediction: str, t: Transition, slope: float) -> dict[str, float]:
    """`diffusion_step` columns of the ancestral step on x0 + slope (x0 - memory); memory := x0."""
    on_x, on_x0 = ancestral(t)
    p_x, p_o = data_coefficients(prediction, t.alpha_a, t.sigma_a)
    columns = {"p_x": p_x, "p_o": p_o, "x_x": on_x, "x_n": t.width, "m_0": 1.0}
    return columns | {"x_0": on_x0 * (1 + slope), "x_m": -slope * on_x0}


def require_anchor(t: Transition) -> None:
    """ValueError where alpha_a = 0 leaves no Gaussian factor."""
    if t.r == 0:
        raise ValueError(
            "the Gaussian-factor start N(x_a / r, s^2 / r^2) does not exist at alpha = 0; use "
            "warm_start='ancestral' or start below that level"
        )


def _anchor_scale(t: Transition) -> float:
    # at alpha_a = 0 the kernel does not depend on x_a: rows have no anchor term, any scale will do
    return 1 / t.r if t.r > 0 else 1.0


def kinetic_start(prediction: str, t: Transition, warm_start: str) -> dict[str, float]:
    """`uld_step` columns that begin a stage: z from the warm start, v fresh, anchor x_a / r."""
    columns = {"a_z": _anchor_scale(t), "v_1": 1.0}
    if warm_start == "gaussian-factor":
        require_anchor(t)
        return {**columns, "z_z": 1 / t.r, "z_2": np.sqrt(t.s2) / t.r}
    on_x, on_x0 = ancestral(t)
    p_x, p_o = data_coefficients(prediction, t.alpha_a, t.sigma_a)
    return {**columns, "z_z": on_x + on_x0 * p_x, "z_o": on_x0 * p_o, "z_2": t.width}


def kinetic_columns(prediction: str, t: Transition, move: dict[str, float]) -> dict[str, float]:
    """`uld_step` columns of a move given in terms of the force G of the stage's kernel at level b.

    With `move` holding z_v, z_g, z_1, z_2, v_v, v_g, v_1 (absent: 0)::

        z' = z + z_v v - z_g G + z_1 n1 + z_2 n2,    v' = v_v v - v_g G + v_1 n1
    """
    q = t.r**2 / t.s2
    pull = {"z_d": -move.get("z_g", 0.0) * q, "v_d": -move.get("v_g", 0.0) * q}
    return marginal_columns(prediction, t.alpha_b, t.sigma_b, move) | pull


def marginal_columns(
    prediction: str, alpha: float, sigma: float, move: dict[str, float]
) -> dict[str, float]:
    """The columns of the same move where G = -score: the target is the law of the level alone."""
    move = dict(move)
    z_g, v_g = move.pop("z_g", 0.0), move.pop("v_g", 0.0)
    s_z, s_o = score_coefficients(prediction, alpha, sigma)
    columns = {"z_z": 1 + z_g * s_z, "z_o": z_g * s_o, "v_z": v_g * s_z, "v_o": v_g * s_o}
    return columns | move


def kinetic_table(
    name: str,
    path: Path,
    prediction: str,
    levels: Callable[[int], np.ndarray],
    plan: Plan,
    move: Callable[[Transition, int], dict[str, float]],
    fold: Callable[[Transition, dict[str, float]], dict[str, float]] | None = None,
) -> StepTable:
    """An RTK table of `uld_step` rows (see :func:`kinetic_rows`), `plan.inner` a stage."""
    grid, builder = levels(plan.stages + 1), TableBuilder(path, prediction, name)
    kinetic_rows(builder, grid, [plan.inner] * plan.stages, plan.warm_start, move, fold)
    return builder.finish(grid[-1] if plan.denoise_last else None, op="uld")


def kinetic_rows(
    builder: TableBuilder,
    grid: Sequence[float],
    inner: Sequence[int],
    warm_start: str,
    move: Callable[[Transition, int], dict[str, float]],
    fold: Callable[[Transition, dict[str, float]], dict[str, float]] | None = None,
) -> None:
    """Adds stages: each a start and `inner[stage]` rows of `move(t, i)`.

    `fold(t, columns)` rewrites the columns of a start, for integrators that begin with a flow.
    """
    for a, b, count in zip(grid[:-1], grid[1:], inner, strict=True):
        t = transition(builder.path, a, b)
        start = kinetic_start(builder.prediction, t, warm_start)
        if fold is not None:
            start = fold(t, start)
        builder.add("uld", a, calls_model=warm_start == "ancestral", **start)
        for i in range(count):
            builder.add("uld", b, **kinetic_columns(builder.prediction, t, move(t, i)))


def overdamped_start(prediction: str, t: Transition, warm_start: str) -> dict[str, float]:
    """`diffusion_step` columns that begin a stage: x from the warm start, memory the anchor."""
    if warm_start == "gaussian-factor":
        require_anchor(t)
        return {"x_x": 1 / t.r, "x_n": np.sqrt(t.s2) / t.r, "m_x": _anchor_scale(t)}
    on_x, on_x0 = ancestral(t)
    p_x, p_o = data_coefficients(prediction, t.alpha_a, t.sigma_a)
    columns = {"p_x": p_x, "p_o": p_o, "x_x": on_x, "x_0": on_x0, "x_n": t.width}
    return columns | {"m_x": _anchor_scale(t)}


def overdamped_columns(prediction: str, t: Transition, tau: float) -> dict[str, float]:
    """`diffusion_step` columns of x' = x - tau G + sqrt(2 tau) n, score = (alpha x0 - x) / s^2."""
    p_x, p_o = data_coefficients(prediction, t.alpha_b, t.sigma_b)
    return {
        "p_x": p_x,
        "p_o": p_o,
        "x_x": 1 - tau / t.sigma_b**2,
        "x_0": tau * t.alpha_b / t.sigma_b**2,
        "x_d": -tau * t.r**2 / t.s2,
        "x_n": np.sqrt(2 * tau),
    }
