"""Rows of linear multistep methods: up to three predictions before the present one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..tables.paths import FlowPath, Path, Transition, transition
from ..tables.table import StepTable, TableBuilder

_SHIFT = {"m_0": 1.0, "s_m": 1.0, "t_2": 1.0}  # each memory becomes the one after it
_POINTS = np.polynomial.legendre.leggauss(32)


class Step(NamedTuple):
    """New x = `x` x + the data predictions, newest first, each times its weight + `noise` n."""

    x: float
    predictions: Sequence[float]
    noise: float = 0.0


def check_integer(solver: str, option: str, value: int, low: int, high: int) -> None:
    """ValueError unless `value` is an integer from `low` to `high`."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not (whole and low <= value <= high):
        raise ValueError(
            f"{solver}: {option} must be an integer from {low} to {high}, got {value!r}"
        )


def check_flag(solver: str, option: str, value: bool | None) -> None:
    """ValueError unless `value` is True, False or None."""
    if value not in (True, False, None):
        raise ValueError(f"{solver}: {option} must be True or False, got {value!r}")


def prediction_table(
    name: str,
    path: Path,
    prediction: str,
    levels: Callable[[int], np.ndarray],
    steps: int,
    denoise_last: bool,
    step: Callable[[list[Transition], int], Step],
    memories: int,
) -> StepTable:
    """A row for each pair of neighbouring levels, with the last data predictions in the memories.

    ``step(past, left)`` gives a row: `past` holds its transition and those before it, newest first,
    and `left` is the number of steps from here to the end, the data prediction included.
    """
    grid = levels(steps if denoise_last else steps + 1)
    builder, past = TableBuilder(path, prediction, name), []
    shift = dict(list(_SHIFT.items())[:memories])
    for i, (a, b) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
        past.insert(0, transition(path, a, b))
        made = step(past, len(grid) - 1 - i + denoise_last)
        p_x, p_o = builder.data_prediction(a)
        columns = prediction_columns(made.x, made.predictions) | {"x_n": made.noise} | shift
        builder.add("diffusion", a, p_x=p_x, p_o=p_o, **columns)
    return builder.finish(grid[-1] if denoise_last else None)


def prediction_columns(x: float, weights: Sequence[float]) -> dict[str, float]:
    """Of x, the present x0 and the three memories; x_d multiplies x - memory2."""
    now, first, second, third = [*weights, 0.0, 0.0, 0.0][:4]
    return {"x_x": x + second, "x_0": now, "x_m": first, "x_d": -second, "x_3": third}


def ratio_coordinates(path: Path, level: float) -> tuple[float, float]:
    """(c, t) with y = x / c = x0 + t eps: c = alpha, t = sigma / alpha."""
    return float(path.alpha(level)), float(path.ratio(level))


def sigma_coordinates(path: Path, level: float) -> tuple[float, float]:
    """(c, t) of the sigmas that k-diffusion and ComfyUI give a sampler.

    It is :func:`ratio_coordinates`, but on a rectified flow c = 1 and t the level: y = x.
    """
    if isinstance(path, FlowPath):
        return 1.0, float(path.sigma(level))
    return ratio_coordinates(path, level)


def slope_table(
    name: str,
    path: Path,
    prediction: str,
    levels: Callable[[int], np.ndarray],
    steps: int,
    denoise_last: bool,
    older: Callable[[np.ndarray, float, int], Sequence[float]],
    *,
    order: int,
    coordinates: Callable[[Path, float], tuple[float, float]] = sigma_coordinates,
    to_data: bool = False,
    cfg_pp: bool = False,
) -> StepTable:
    """Steps in y = x / c along dy/dt = d = (y - x0) / t, with the slopes d in the memories.

    The weights of a step's slopes sum to t_b - t_a, so that with those of the older ones

        y_b = y_a + (t_b - t_a) d + w_1 (d_1 - d) + w_2 (d_2 - d) + w_3 (d_3 - d).

    Args:
        older: ``older(nodes, t_b, left)`` gives w_1, w_2, ..., each 0 where it is left out; `nodes`
            holds the t of up to `order` slopes, newest first, two or more, and `left` is the number
            of steps from here to the end, the data prediction included.
        order: the most slopes that a step uses.
        coordinates: ``coordinates(path, level)`` gives (c, t).
        to_data: make the last step, to t = 0, one of these in place of a data prediction.
        cfg_pp: take the slopes from the prediction without the condition, x0u, and add x0 - x0u.
    """
    grid = levels(steps if denoise_last else steps + 1)
    builder, nodes = TableBuilder(path, prediction, name), []
    ends = [(coordinates(path, level), float(path.sigma(level))) for level in grid]
    if denoise_last and to_data:
        ends.append(((1.0, 0.0), 0.0))
    for a, b in zip(grid[:-1], grid[1:], strict=True):
        transition(path, a, b)  # refuses a step that goes up
    shift = dict(list(_SHIFT.items())[1 : max(order - 1, 1)])  # the first memory holds a slope
    for i, (((c_a, t_a), sigma_a), ((c_b, t_b), sigma_b)) in enumerate(
        zip(ends[:-1], ends[1:], strict=True)
    ):
        nodes = [t_a, *nodes][:order]
        left = len(grid) - 1 - i + denoise_last
        weights = older(np.array(nodes), t_b, left) if len(nodes) > 1 else ()
        weights = c_b * np.array(weights, np.float64)
        # d = (x - c_a x0) / sigma_a
        columns = prediction_columns((sigma_b - weights.sum()) / sigma_a, (0.0, *weights))
        columns["x_0"] = c_b * (1 - t_b / t_a) + weights.sum() * c_a / sigma_a
        if order > 1:
            columns |= {"m_x": 1 / sigma_a, "m_0": -c_a / sigma_a, **shift}
        if cfg_pp:
            columns |= {"x_0": c_b, "x_u": columns["x_0"] - c_b}
            columns["m_u"] = columns.pop("m_0", 0.0)
        p_x, p_o = builder.data_prediction(grid[i])
        builder.add("diffusion", grid[i], p_x=p_x, p_o=p_o, **columns)
    return builder.finish(grid[-1] if denoise_last and not to_data else None)


def lagrange(nodes: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The Lagrange polynomials of `nodes` `[n]` at `at` `[k]`, as `[n, k]`.

    A node at infinity (a level where alpha = 0) says nothing of a slope: its polynomial is 0, and
    the others are those of the nodes without it, which is the limit.
    """
    values = np.ones((len(nodes), len(at)))
    values[~np.isfinite(nodes)] = 0.0
    finite = np.flatnonzero(np.isfinite(nodes))
    for i in finite:
        for j in finite[finite != i]:
            values[i] *= (at - nodes[j]) / (nodes[i] - nodes[j])
    return values


def quadrature(a: float, b: float) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights of Gauss-Legendre quadrature from a to b, of 32 points."""
    points, weights = _POINTS
    return (a + b) / 2 + (b - a) / 2 * points, (b - a) / 2 * weights
