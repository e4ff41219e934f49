"""Every table keeps to the noiseless path: with a model that knows the data, and with noise 0.

On x = alpha x0 the noise that a model sees is 0, there is nothing to do but to follow the path: an
ancestral, deterministic or Langevin step to level b ends at alpha_b x0, a proposal is its origin,
and the last data prediction is x0. So the state after each row must be alpha x0 at the level of the
next row, whatever the solver, path and prediction. Solvers are discovered: a new one is tested the
day its file is there.

Tolerance. A row is at most 16 products and sums in float64, its coefficients as many roundings in
their making, on terms no larger than the data; and a row enlarges no error that it is given. So
after i rows the state may be 32 i 2^-53 max |x0| off.

A coefficient that is off by a thousandth is found in every row, if it makes the next state from
state, prediction, output or memory; in some row, if it makes a memory, an anchor or a velocity,
which a later row has to read. What is not seen are the columns of which the other factor is 0:
those on normals (x_n, z_1, z_2, v_1), on the velocity, which stays 0 (z_v, v_v), on the distance
from the anchor (z_d, v_d, and x_d where the memory is an anchor), and on memories of the noise that
the model saw, which solvers keep that work with slopes; and those of accept rows, which have no
proposal to refuse. The laws of `test_rtk_law.py` and the formulas of `test_solvers.py` see these.
With epsilon and score models the output is 0 too; so the control has a model of v.
"""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
import pytest

import ardiff
from ardiff.solvers import SOLVERS, solver_options
from ardiff.tables.paths import PATHS, PREDICTIONS
from ardiff.tables.table import COLUMNS
from tests._support.solver_problem import Problem, states

DATA = np.array([0.3, -1.1, 0.7, 1.6])
STEPS = 14
MOVES = {"p_x", "p_o", "x_x", "x_0", "x_m", "x_3", "z_z", "z_o"}
KEEPS = {"m_x", "m_0", "s_x", "s_m", "s_2", "t_2", "v_z", "v_o", "a_z"}


class Known(Problem):
    """A model that knows the data, a start on the noiseless path, and no noise."""

    def __init__(self, table):
        super().__init__(table.path)
        self.start = self.path.alpha(table.level[0]) * DATA / table.init_scale
        self.normals = np.zeros((len(table), 2, len(DATA)))

    def denoise(self, x, level):
        return np.broadcast_to(DATA, x.shape)


def table_of(solver, path, prediction):
    options = {"dim": len(DATA)} if "dim" in solver_options(solver) else {}
    return ardiff.solver(solver, path=path, prediction=prediction, steps=STEPS, **options)


def excess(table):
    """The largest distance of a row's state from the path, in units of the tolerance."""
    problem = Known(table)
    alpha = np.append(problem.path.alpha(table.level[1:]), 1.0)
    error = np.abs(np.array(list(states(table, problem))) - alpha[:, None] * DATA).max(1)
    return float((error / np.arange(1, len(table) + 1)).max() / (32 * 2**-53 * DATA.max()))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_row_keeps_to_the_noiseless_path(solver, path):
    for prediction in PREDICTIONS:
        assert excess(table_of(solver, path, prediction)) < 1, prediction


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_coefficient_changed_by_a_thousandth_is_found(solver):
    table = table_of(solver, "ou", "v_prediction")
    moves, keeps = MOVES | ({"x_d"} if table.memories > 1 else set()), KEEPS
    if (table.column("m_x") * table.column("m_0")).any():  # the memories hold noise
        moves, keeps = moves - {"x_m", "x_3"}, keeps - {"s_m", "t_2"}
    found = collections.defaultdict(list)
    for row, column in np.argwhere(np.abs(table.coefficients) > 1e-9):  # not the rounding of a 0
        coefficients = table.coefficients.copy()
        coefficients[row, column] *= 1 + 1e-3
        changed = dataclasses.replace(table, coefficients=coefficients)
        found[COLUMNS[table.op[row]][column]].append(excess(changed) > 1)
    for name, rows in found.items():
        if name in moves:
            assert all(rows), name
        else:
            assert any(rows) == (name in keeps), name
