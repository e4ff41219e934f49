"""Solvers from a tableau: the orders of known methods, and what a tableau must satisfy.

The order is measured on a problem that is known exactly: data N(0, v), whose denoiser is linear and
whose ODE keeps x / sqrt(alpha^2 v + sigma^2).
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import ardiff
from ardiff.loop.run import run
from ardiff.solvers import from_tableau, phi
from ardiff.tables.paths import PATHS, PREDICTIONS, get_path
from tests._support.solver_problem import Problem, run_table


def half(k):
    return lambda z: phi(k, z / 2)


EULER = ([[0]], [lambda z: phi(1, z)], [0])
HEUN = (
    [[0, 0], [lambda z: phi(1, z), 0]],
    [lambda z: phi(1, z) - phi(2, z), lambda z: phi(2, z)],
    [0, 1],
)
# Hochbruck & Ostermann 2005, (5.9) with c_2 = 1/3: of order three
THIRD = (
    [
        [0, 0, 0],
        [lambda z: phi(1, z / 3) / 3, 0, 0],
        [
            lambda z: 2 / 3 * phi(1, 2 * z / 3) - 4 / 3 * phi(2, 2 * z / 3),
            lambda z: 4 / 3 * phi(2, 2 * z / 3),
            0,
        ],
    ],
    [lambda z: phi(1, z) - 3 / 2 * phi(2, z), 0, lambda z: 3 / 2 * phi(2, z)],
    [0, 1 / 3, 2 / 3],
)
FOURTH_WEIGHTS = [
    lambda z: phi(1, z) - 3 * phi(2, z) + 4 * phi(3, z),
    lambda z: 2 * phi(2, z) - 4 * phi(3, z),
    lambda z: 2 * phi(2, z) - 4 * phi(3, z),
    lambda z: 4 * phi(3, z) - phi(2, z),
]
COX_MATTHEWS = (
    [
        [0, 0, 0, 0],
        [lambda z: phi(1, z / 2) / 2, 0, 0, 0],
        [0, lambda z: phi(1, z / 2) / 2, 0, 0],
        [lambda z: phi(1, z / 2) / 2 * math.expm1(z / 2), 0, half(1), 0],
    ],
    FOURTH_WEIGHTS,
    [0, 0.5, 0.5, 1],
)
KROGSTAD = (
    [
        [0, 0, 0, 0],
        [lambda z: phi(1, z / 2) / 2, 0, 0, 0],
        [lambda z: phi(1, z / 2) / 2 - phi(2, z / 2), half(2), 0, 0],
        [lambda z: phi(1, z) - 2 * phi(2, z), 0, lambda z: 2 * phi(2, z), 0],
    ],
    FOURTH_WEIGHTS,
    [0, 0.5, 0.5, 1],
)
METHODS = {
    "euler": (EULER, 1),
    "heun": (HEUN, 2),
    "third": (THIRD, 3),
    "cox-matthews": (COX_MATTHEWS, 4),
    "krogstad": (KROGSTAD, 4),
}


class Gaussian(Problem):
    """Data N(0, v), elementwise."""

    variance = 0.6

    def denoise(self, x, level):
        alpha, sigma = self.at(level)
        return alpha * self.variance * x / (alpha**2 * self.variance + sigma**2)

    def spread(self, level):
        alpha, sigma = self.at(level)
        return math.sqrt(alpha**2 * self.variance + sigma**2)


def error(table, problem, grid):
    first, last = problem.spread(grid[0]), problem.spread(grid[-1])
    exact = last / first * problem.path.init_scale(grid[0]) * problem.start
    return np.abs(run_table(table, problem) - exact).max()


@pytest.mark.parametrize("path", ["edm", "flow", "vp-linear"])
@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_a_method(method, path):
    """Twice as many steps make the error 2^order times smaller, nearly."""
    tableau, order = METHODS[method]
    make, problem, errors = from_tableau(*tableau), Gaussian(path), []
    problem.normals = np.zeros((400, 2, 40))
    for steps in (8, 16, 32):
        ratios = np.geomspace(8.0, 0.1, steps + 1)
        grid = get_path(path).level(ratios)
        table = make(
            path=path, prediction="sample", steps=steps * len(tableau[2]), grid=grid,
            denoise_last=False,
        )  # fmt: skip
        errors.append(error(table, problem, grid))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert abs(orders[-1] - order) < 0.25, (errors, orders)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", METHODS)
def test_every_prediction_gives_the_same_states_and_keeps_the_data(method, path):
    """x = alpha x0 of known data stays that after every row."""
    make = from_tableau(*METHODS[method][0])
    problem = Problem(path)
    tables = [make(path=path, prediction=prediction, steps=21) for prediction in PREDICTIONS]
    first, *others = (run_table(table, problem) for table in tables)
    for other in others:
        np.testing.assert_allclose(other, first, rtol=0, atol=1e-9)
    assert tables[0].memories == max(1, len(METHODS[method][0][2]) - 1)

    known = Problem(path)
    known.denoise = lambda x, level: np.full_like(x, 0.7)
    known.start = np.full(40, 0.7 * known.path.alpha(tables[0].level[0]) / tables[0].init_scale)
    np.testing.assert_allclose(run_table(tables[1], known), 0.7, rtol=0, atol=1e-12)


def test_krogstad_is_the_method_as_written():
    """Its four stages from the beginning of each step, in y = x / alpha."""
    problem, table = (
        Problem("ou"),
        from_tableau(*KROGSTAD)(path="ou", prediction="epsilon", steps=13),
    )
    path = problem.path
    grid = [*table.level[::4]]
    y = problem.start * table.init_scale / path.alpha(grid[0])
    for a, b in zip(grid[:-1], grid[1:], strict=True):
        h = math.log(path.ratio(a) / path.ratio(b))

        def prediction(y, c, a=a, h=h):
            level = float(path.level(path.ratio(a) * math.exp(-c * h)))
            return problem.denoise(path.alpha(level) * y, level)

        known = []
        for row, c in zip(KROGSTAD[0], KROGSTAD[2], strict=True):
            weights = [e(-h) if callable(e) else e for e in row]
            stage = math.exp(-c * h) * y + h * sum(
                w * d for w, d in zip(weights, known, strict=False)
            )
            known.append(prediction(stage, c))
        weights = [e(-h) for e in KROGSTAD[1]]
        y = math.exp(-h) * y + h * sum(w * d for w, d in zip(weights, known, strict=True))
    want = problem.denoise(path.alpha(grid[-1]) * y, grid[-1])
    np.testing.assert_allclose(run_table(table, problem), want, rtol=0, atol=1e-10)
    wrong = from_tableau(*COX_MATTHEWS)(path="ou", prediction="epsilon", steps=13)
    assert np.abs(run_table(wrong, problem) - want).max() > 1e-4


def test_the_loop_runs_four_stages():
    """float32, three memories, against float64."""
    problem = Problem("flow")
    table = from_tableau(*KROGSTAD)(path="flow", prediction="flow", steps=13)
    x = torch.tensor(table.init_scale * problem.start, dtype=torch.float32)[None]
    place = {"key": torch.zeros(1, dtype=torch.int64), "stream": torch.zeros(1, dtype=torch.int64)}
    found = run(
        table, lambda x, level, _: problem.output("flow", x, float(level)).float(), x, **place
    )
    np.testing.assert_allclose(found[0].numpy(), run_table(table, problem), rtol=0, atol=2e-5)


def test_weights_must_follow_the_step():
    """A number that is the sum at h = 0 is not at others."""
    with pytest.raises(ValueError, match=r"b must sum to c phi_1\(c z\), which is 0.9995"):
        from_tableau([[0]], [1], [0])


RK4 = ([[0] * 4, [0.5, 0, 0, 0], [0, 0.5, 0, 0], [0, 0, 1, 0]], [1 / 6, 1 / 3, 1 / 3, 1 / 6])
BAD = {
    "1 to 4 stages, as many as the rows' three memories serve, got 5": (
        [[0] * 5] * 5, [0] * 5, [0] * 5),
    "A [2, 2] and b [2], got rows of [1, 2] and 2": ([[0], [0, 0]], [0, 0], [0, 1]),
    "begin with c = 0 and lie in [0, 1], got [0.5]": ([[0]], [1], [0.5]),
    "lie in [0, 1], got [0.0, 1.5]": (HEUN[0], HEUN[1], [0, 1.5]),
    "A must be strictly lower triangular, so that no stage needs a later one: A[0][1] is 1": (
        [[0, 1], [0, 0]], HEUN[1], [0, 1]),
    "row 1 of A must sum to c phi_1(c z)": (HEUN[0], HEUN[1], [0, 0.5]),
    "Tableaux of classical methods do not: see phi": (*RK4, [0, 0.5, 0.5, 1]),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_what_is_no_tableau(message):
    with pytest.raises(ValueError) as raised:
        from_tableau(*BAD[message])
    assert message in str(raised.value)


def test_what_a_solver_of_a_tableau_refuses():
    make = from_tableau(*HEUN)
    with pytest.raises(ValueError, match="makes 2 model calls per step: it needs steps >= 3"):
        make(path="flow", prediction="flow", steps=2)
    with pytest.raises(ValueError, match="needs 3 levels, the grid has 2"):
        make(path="edm", prediction="sample", steps=5, grid=[2.0, 1.0])
    with pytest.raises(ValueError, match="steps must be an integer of 1 or more, got 0"):
        make(path="edm", prediction="sample", steps=0)
    with pytest.raises(ValueError, match="unknown prediction 'x'"):
        make(path="edm", prediction="x", steps=5)


def test_phi():
    """Against the recurrence in numpy's longdouble."""
    for z in (-20.0, -1.0, -0.99, -1e-3, 0.5):
        value = np.exp(np.longdouble(z))
        for k in range(1, 4):
            value = (value - 1 / np.longdouble(math.factorial(k - 1))) / np.longdouble(z)
            assert phi(k, z) == pytest.approx(float(value), rel=1e-13 if abs(z) > 0.1 else 1e-8)
    assert [phi(k, 0.0) for k in range(4)] == [1, 1, 1 / 2, 1 / 6]


def test_res_2s_is_made_of_its_tableau():
    c2 = 0.3
    tableau = (
        [[0, 0], [lambda z: c2 * phi(1, c2 * z), 0]],
        [lambda z: phi(1, z) - phi(2, z) / c2, lambda z: phi(2, z) / c2],
        [0, c2],
    )
    options = {"path": "flow", "prediction": "flow", "steps": 9}
    ours = from_tableau(*tableau)(**options).coefficients
    assert np.array_equal(ours, ardiff.solver("res-2s", c2=c2, **options).coefficients)
