"""Rows in the coordinates y = x / alpha, s = sigma / alpha, in which all Gaussian paths are one.

There the model is D(y, s) = E[x0 | y], and a row with one call and up to three earlier predictions
is seven numbers::

    s | y  d0  d1  d2  d3 | noise
    new y = y y + d0 D + d1 D1 + d2 D2 + d3 D3 + noise n

D is the prediction at (y, s), and D1, D2, D3 are those of the rows before. The weights of y and of
the predictions sum to 1, so that data that are moved move the samples with them.
"""

from __future__ import annotations

import numpy as np

from .paths import Path, get_path
from .table import StepTable, TableBuilder

COLUMNS = ("s", "y", "d0", "d1", "d2", "d3", "noise")
_READ = ("p_x", "p_o", "x_x", "x_0", "x_m", "x_d", "x_n", "x_3", "m_0", "s_m", "t_2")


def to_table(
    rows: np.ndarray,
    path: str | Path,
    prediction: str,
    name: str,
    levels: np.ndarray | None = None,
) -> StepTable:
    """The table of `rows` on a path, for models of a prediction type.

    Args:
        rows: float64 `[N, 7]`, the columns of :data:`COLUMNS`.
        name: of the solver, which the table carries.
        levels: at which the model is called, `[N]`; by default those of the column s, or the
            nearest that the path covers. With one more, `[N + 1]`, the state after the last row is
            at that level; else it is the sample.

    The table has two memories, so that short ones run beside longer ones, or three.

    Raises:
        ValueError: an epsilon or score model at alpha = 0.
    """
    path = get_path(path)
    rows = np.asarray(rows, np.float64)
    if levels is None:
        levels = path.level(np.clip(rows[:, 0], path.ratio_min, path.ratio_max))
    builder = TableBuilder(path, prediction, name)
    alpha = path.alpha(levels)
    alpha = alpha if len(levels) > len(rows) else np.append(alpha, 1.0)
    # where alpha is 0 the row's s stands for infinity
    alpha = np.where(alpha == 0, 1 / np.append(rows[:, 0], 1.0)[: len(alpha)], alpha)
    third = rows[:, 5].any()
    for i, (_, y, d0, d1, d2, d3, noise) in enumerate(rows):
        a, b = alpha[i], alpha[i + 1]
        p_x, p_o = builder.data_prediction(levels[i])
        builder.add(
            "diffusion", levels[i], p_x=p_x, p_o=p_o,
            x_x=b * (y / a + d2), x_d=-b * d2,  # d2 (x - (x - memory2)): d2 on memory2
            x_0=b * d0, x_m=b * d1, x_3=b * d3, x_n=b * noise,
            m_0=1.0, s_m=1.0, t_2=float(third),
        )  # fmt: skip
    return builder.finish()


def from_table(table: StepTable) -> np.ndarray | None:
    """The rows of a table, float64 `[N, 7]`; None where it is of another form.

    That form is: a model call at every row, memories that hold the predictions before, and the
    sample after the last row.
    """
    if table.alpha is None or set(table.op) != {"diffusion"} or not table.calls_model.all():
        return None
    column = {name: table.column(name) for name in _READ}
    if any(table.column(name).any() for name in ("m_x", "s_x", "s_2", "x_u", "m_u", "lv_min")):
        return None
    if table.memories == 3 and not column["t_2"].all():
        return None
    remembers = column["x_m"].any() or column["x_d"].any() or column["x_3"].any()
    # the last row's memory is read by none
    if remembers and not (column["m_0"][:-1] == 1).all():
        return None
    if table.memories > 1 and not (column["s_m"][:-1] == 1).all():
        return None
    if table.memories == 1 and column["x_d"].any():  # a pull to an anchor
        return None
    a, b = table.alpha, np.append(table.alpha[1:], 1.0)
    rows = np.stack(
        [
            table.sigma / a,
            (column["x_x"] + column["x_d"]) * a / b,
            column["x_0"] / b,
            column["x_m"] / b,
            -column["x_d"] / b,
            column["x_3"] / b,
            column["x_n"] / b,
        ],
        axis=1,
    )
    return rows if np.abs(rows[:, 1:6].sum(1) - 1).max() < 1e-6 else None
