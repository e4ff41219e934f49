"""What a run with a lookahead knows of a table beside its coefficients: the plan of its rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ardiff_kernels.ops.lookahead_draft import COLUMNS

from .predictions import data_coefficients
from .table import WIDTH, StepTable

_MOST_GAIN = 3.0  # of x / alpha: three times that of data without noise


class LookaheadTable(NamedTuple):
    """A table as `lookahead_draft` and `lookahead_verify` take it.

    Attributes:
        coef, plan: float32 `[T, 20]`; the latter's columns are those of `lookahead_draft`.
        op: int32 `[T]`, 1 for rows of `uld_step`; None for a table without them.
        level: float32 `[T]`.
        calls_model: bool `[T]`.
        couples: whether any row is drafted by chance, so that the law is gained row by row.
    """

    coef: torch.Tensor
    plan: torch.Tensor
    op: torch.Tensor | None
    level: torch.Tensor
    calls_model: torch.Tensor
    couples: bool


def refusal(table: StepTable) -> str:
    """Why a table cannot be run with a lookahead; empty if it can."""
    if "accept" in table.op:
        return "its rows accept or reject proposals, which themselves wait for the model"
    if table.learned_range:
        return "its noise may have a variance that the model gives, which no draft knows"
    if table.memories > 2:
        return "it has a third memory, which drafts do not carry"
    if table.unconditional:
        return "its rows read the unconditional prediction (x_u, m_u), and drafts see guided ones"
    silent = ~table.calls_model
    weights = [table.column(name) for name in ("x_0", "m_0", "z_o", "v_o")]
    if any(np.any(weight[silent]) for weight in weights):
        return "it has rows that use the output of an earlier row"
    if "uld" in table.op and table.alpha is None:
        return "it has rows with a velocity at levels that no path knows"
    return ""


def lookahead_table(table: StepTable, device: torch.device | str = "cpu") -> LookaheadTable:
    """The plan of a table, all but calls_model on `device`; made once, and kept with it.

    Raises:
        ValueError: a table that cannot be run with a lookahead, with the reason.
    """
    device = torch.device(device)
    name = f"lookahead {device}"
    if name not in table._cache:
        found = _made(table)
        moved = {
            field: None if t is None else t.to(device)
            for field, t in found._asdict().items()
            if field in ("coef", "plan", "op", "level")
        }
        table._cache[name] = found._replace(**moved)
    return table._cache[name]


def _made(table: StepTable) -> LookaheadTable:
    why = refusal(table)
    if why:
        raise ValueError(f"solver {table.solver} cannot be run with a lookahead: {why}")
    p_x, p_o = _data_prediction(table)
    plan = np.zeros((len(table), WIDTH))

    def put(name: str, values: np.ndarray) -> None:
        plan[:, COLUMNS.index(name)] = values

    put("p_x", p_x)
    put("p_o", p_o)
    put("o_0", np.divide(1.0, p_o, out=np.zeros_like(p_o), where=p_o != 0))
    for name, values in _martingale(table).items():
        put(name, values)
    put("couples", _couples(table))
    put("calls", table.calls_model)
    op = np.array([op == "uld" for op in table.op], dtype=np.int32)
    return LookaheadTable(
        table.coef(),
        torch.tensor(plan, dtype=torch.float32),
        torch.from_numpy(op) if op.any() else None,
        torch.tensor(table.level, dtype=torch.float32),
        torch.tensor(table.calls_model),
        bool(np.any(_couples(table) * _noisy(table))),
    )


def _data_prediction(table: StepTable) -> tuple[np.ndarray, np.ndarray]:
    """(p_x, p_o) of each row: its own, of rows with a velocity the path's."""
    p_x, p_o = table.column("p_x").copy(), table.column("p_o").copy()
    for i, op in enumerate(table.op):
        if op == "uld":
            p_x[i], p_o[i] = data_coefficients(table.prediction, table.alpha[i], table.sigma[i])
    return p_x, p_o


def _martingale(table: StepTable) -> dict[str, np.ndarray]:
    """r_x, r_0, the gains and the unit of each row.

    Where no path knows the levels, the place that moves no data prediction is where the row before
    leads without noise, and the gain of unit variance is not known: 0.
    """
    rows = len(table)
    if table.alpha is None:
        none, one = np.zeros(rows), np.ones(rows)
        before = {name: np.append(0.0, table.column(name)[:-1]) for name in ("x_x", "x_0")}
        return {
            "r_x": before["x_x"], "r_0": before["x_0"], "g_0": none, "g_s": one,
            "g_max": np.full(rows, _MOST_GAIN), "unit": one,
        }  # fmt: skip
    alpha, sigma = table.alpha, table.sigma
    a, s, b, t = alpha[:-1], sigma[:-1], alpha[1:], sigma[1:]  # of the row before, and of the row
    zero = np.zeros(rows - 1)
    moved = np.divide(a * t**2, b * s**2, out=zero.copy(), where=b * s != 0)
    r_x = np.where(s != 0, moved, np.divide(b, a, out=zero.copy(), where=a != 0))
    spread = np.hypot(alpha, sigma)
    return {
        "r_x": np.append(0.0, r_x),
        "r_0": np.append(0.0, b - r_x * a),
        "g_0": alpha / spread**2,
        "g_s": np.append(0.0, np.divide(a, b, out=zero.copy(), where=b != 0)),
        "g_max": np.divide(_MOST_GAIN, alpha, out=np.zeros(rows), where=alpha != 0),
        "unit": 1 / np.append(spread[1:], spread[-1]),
    }


def _noisy(table: StepTable) -> np.ndarray:
    return np.any([table.column(name) != 0 for name in ("x_n", "z_1", "z_2", "v_1")], axis=0)


def _couples(table: StepTable) -> np.ndarray:
    """Whether the noise of a row reaches wherever two data predictions move its mean."""
    z_o, v_o, z_1, z_2, v_1 = map(table.column, ("z_o", "v_o", "z_1", "z_2", "v_1"))
    with np.errstate(divide="ignore", invalid="ignore"):
        in_v = (v_1 != 0) | (v_o == 0)
        left = z_o - z_1 * np.where(v_1 != 0, v_o / v_1, 0.0)
        in_z = (z_2 != 0) | (np.abs(left) <= 1e-12 * np.abs(z_o))
    kinetic = np.array([op == "uld" for op in table.op])
    return np.where(kinetic, in_v & in_z, table.column("x_n") != 0).astype(float)
