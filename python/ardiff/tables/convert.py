"""A table for models of another prediction type or on another path.

With y = x / alpha and s = sigma / alpha the data prediction of a model is a function of (y, s)
alone, whatever the path. A diffusion row is a linear map of x, of data predictions and of a normal;
so it is the same row on another path, at the level of the same s, with the weights times the two
paths' ratio of alpha.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from .columns import DIFFUSION_COLUMNS
from .paths import Path, data_coefficients, get_path

if TYPE_CHECKING:
    from .table import StepTable

_PLACE = {name: i for i, name in enumerate(DIFFUSION_COLUMNS)}
_ON_STATE = ("x_0", "x_m", "x_n", "x_3", "x_u")  # weights in the new x, besides those on x


def converted(
    table: StepTable, path: str | Path | None = None, prediction: str | None = None
) -> StepTable:
    """See :meth:`ardiff.tables.table.StepTable.on`."""
    prediction = table.prediction if prediction is None else prediction
    alpha, sigma = _source(table)
    rows = table.coefficients.copy()
    if path is not None:
        path = get_path(path)
        _check_movable(table)
        level = path.level(sigma / alpha)
        scale = path.alpha(level) / alpha  # of the state before each row, and after it
        after = np.append(scale[1:], 1.0)
        on_x = (rows[:, _PLACE["x_x"]] + rows[:, _PLACE["x_d"]]) * after / scale
        rows[:, [_PLACE[name] for name in (*_ON_STATE, "x_d")]] *= after[:, None]
        rows[:, _PLACE["x_x"]] = on_x - rows[:, _PLACE["x_d"]]
        if table.learned_range:
            rows[:, [_PLACE["lv_min"], _PLACE["lv_max"]]] += 2 * np.log(after)[:, None]
        alpha, sigma = path.alpha(level), path.sigma(level)
        table = replace(
            table, level=level, alpha=alpha, sigma=sigma, path=path.name,
            init_scale=path.init_scale(level[0]),
        )  # fmt: skip
    rows[:, :2] = _data_columns(prediction, alpha, sigma)
    return replace(table, coefficients=rows, prediction=prediction)


def _data_columns(prediction: str, alpha: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """p_x and p_o of each row, `[T, 2]`."""
    pairs = zip(alpha.tolist(), sigma.tolist(), strict=True)
    return np.array([data_coefficients(prediction, a, s) for a, s in pairs])


def _source(table: StepTable) -> tuple[np.ndarray, np.ndarray]:
    """The path's coefficients; raises unless each row reads the data prediction at its level."""
    if set(table.op) != {"diffusion"} or not table.calls_model.all() or table.alpha is None:
        raise ValueError(
            f"{table.solver} cannot be converted: that needs a table of diffusion rows alone, all "
            "of which call the model, on a Path"
        )
    expected = _data_columns(table.prediction, table.alpha, table.sigma)
    if not np.allclose(table.coefficients[:, :2], expected, rtol=1e-6, atol=1e-12):
        raise ValueError(
            f"{table.solver} cannot be converted: its p_x and p_o are not those of a "
            f"{table.prediction} model on its path"
        )
    return table.alpha, table.sigma


def _check_movable(table: StepTable) -> None:
    """Raises for a table whose memory holds states, which have no scale of their own, or that does
    not begin above alpha = 0 and end at the data."""
    if table.column("m_x").any() or table.column("s_x").any():
        raise ValueError(
            f"{table.solver} cannot be moved to another path: its memory holds states, not data "
            "predictions; make the table there"
        )
    if np.any(table.alpha == 0):
        raise ValueError(
            f"{table.solver} cannot be moved to another path: it begins at alpha = 0, an infinite "
            "sigma / alpha"
        )
    last = table.coefficients[-1]
    on_data = sum(last[_PLACE[name]] for name in ("x_0", "x_m", "x_3", "x_u")) - last[_PLACE["x_d"]]
    end = (last[_PLACE["x_x"]] + last[_PLACE["x_d"]]) * table.alpha[-1] + on_data
    if abs(end - 1) > 1e-6:
        raise ValueError(
            f"{table.solver} cannot be moved to another path: it ends at alpha = {end:g}, not at "
            "the data; make it with denoise_last=True"
        )
