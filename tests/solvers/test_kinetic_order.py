"""Bias and strong order of the kinetic integrators, by the rows of their solvers.

Stationary bias: on a Gaussian the discrete chain's law is known; the rows' own matrices must have
it, and so must 2^17 simulated chains, to z-scores below 5.8 (6.6e-9 two-sided, so that the file's
false-alarm rate is below 1e-6), while they reject every other integrator's value.

Strong order: the rows are run on a nonlinear force with given normals, those of a fine path,
composed exactly from its steps. The root mean square error over 1500 paths falls as tau^p. p is 2
for UBU (Sanz-Serna & Zygalakis 2021). It is 1 for ULD: freezing the force errs by G' v tau^2 / 2 a
step, and these add up. It is 1 for BAOAB and OBABO: the position sees the velocity's noise at one
point of a step only, an independent error of variance proportional to tau^3 per step.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import expm, solve_discrete_lyapunov

from ardiff.loop.run import run
from ardiff.noise import make_key, make_stream
from ardiff.solvers import rtk_baoab, rtk_obabo, rtk_ubu, rtk_uld
from ardiff.solvers._rtk import stages as rtk
from ardiff.tables.paths import get_path, transition
from ardiff.tables.table import TableBuilder
from ardiff_kernels import host
from ardiff_kernels.ops.uld_step.reference import uld_step

GAMMA, TAU, LAM = 2.0, 0.8, 1.0
CHAINS = (32, 4096)

# the row within a stage, and the row that ends it, of each integrator
MOVES = {
    "rtk-uld": (rtk_uld.move, rtk_uld.move),
    "rtk-baoab": (lambda g, t: rtk_baoab.move(g, t, first=False),) * 2,
    "rtk-obabo": (lambda g, t: rtk_obabo.move(g, t, first=False),) * 2,
    "rtk-ubu": tuple(lambda g, t, e=e: rtk_ubu.move(g, t, last=e) for e in (False, True)),
}


def stage(lam=LAM):
    """A stage of the OU path whose kernel has Hessian `lam`, and the data's variance."""
    b = 0.4
    a = b + 0.5 * math.log(1 + 2 / lam)  # r^2 / s^2 = lam / 2
    alpha, sigma = (float(f(b)) for f in (get_path("ou").alpha, get_path("ou").sigma))
    return transition("ou", a, b), a, b, (2 / lam - sigma**2) / alpha**2


def row_matrices(move, lam=LAM):
    """Drift and noise of (z, v) by a row's columns at an anchor of 0."""
    c = {"z_1": 0.0, "z_2": 0.0, "v_1": 0.0, **rtk.kinetic_columns("score", stage(lam)[0], move)}
    total = 2 / lam  # variance at level b, so that the score is -z / total
    drift = [
        [c["z_z"] + c["z_d"] - c["z_o"] / total, c["z_v"]],
        [c["v_z"] + c["v_d"] - c["v_o"] / total, c["v_v"]],
    ]
    factor = np.array([[c["z_1"], c["z_2"]], [c["v_1"], 0]])
    return np.array(drift), factor @ factor.T


def row_variance(name, gamma, tau, lam=LAM):
    """Stationary Var z at the end of a stage, from the rows."""
    inner, last = (row_matrices(move(gamma, tau), lam) for move in MOVES[name])
    law = solve_discrete_lyapunov(*inner)
    return (last[0] @ law @ last[0].T + last[1])[0, 0]


def exact_variance(name, gamma, tau, lam=LAM):
    """Stationary Var z of the unmerged integrator, from its definition."""
    if name == "rtk-baoab":
        return 1 / lam
    if name == "rtk-obabo":
        return 1 / (lam * (1 - tau**2 * lam / 4))
    free = np.array([[0, 1.0], [0, -gamma]])

    def flow(time):
        # Van Loan: the noise covariance of the free flow, from one matrix exponential
        block = np.zeros((4, 4))
        block[:2, :2], block[2:, 2:], block[1, 3] = -free, free.T, 2 * gamma
        e = expm(block * time)
        drift = e[2:, 2:].T
        return drift, drift @ e[:2, 2:]

    if name == "rtk-uld":
        block = np.zeros((3, 3))
        block[:2, :2], block[1, 2] = free, -lam
        drift = expm(block * tau)[:2, :2] + np.outer(expm(block * tau)[:2, 2], [1, 0])
        return solve_discrete_lyapunov(drift, flow(tau)[1])[0, 0]
    (half, noise), kick = flow(tau / 2), np.array([[1, 0], [-lam * tau, 1]])
    after = half @ kick
    return solve_discrete_lyapunov(after @ half, after @ noise @ after.T + noise)[0, 0]


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize(
    ("gamma", "tau", "lam"), [(2, 0.1, 1), (2, 0.4, 1), (1, 0.5, 2), (5, 0.3, 2)]
)
def test_stationary_variance_of_rows(name, gamma, tau, lam):
    assert row_variance(name, gamma, tau, lam) == pytest.approx(
        exact_variance(name, gamma, tau, lam), rel=1e-11
    )


def test_the_bias_of_each_integrator():
    """At curvature 1, gamma 2 and tau .4, .2, .1: order 1 (ULD), 2 (UBU, OBABO), none (BAOAB)."""
    expected = {
        "rtk-uld": (1.1e-1, 5.2e-2, 2.6e-2),
        "rtk-ubu": (-2.6e-2, -6.6e-3, -1.7e-3),
        "rtk-obabo": (4.17e-2, 1.01e-2, 2.5e-3),
        "rtk-baoab": (0, 0, 0),
    }
    for name, biases in expected.items():
        for tau, bias in zip((0.4, 0.2, 0.1), biases, strict=True):
            assert row_variance(name, 2.0, tau) - 1 == pytest.approx(bias, rel=0.03, abs=1e-12)


def long_stage(name, rows):
    t, a, b, variance = stage()
    builder = TableBuilder("ou", "score", name)
    builder.add("uld", a, **rtk.kinetic_start("score", t, "ancestral"))
    inner, last = (move(GAMMA, TAU) for move in MOVES[name])
    for i in range(rows):
        columns = rtk.kinetic_columns("score", t, last if i == rows - 1 else inner)
        builder.add("uld", b, **columns)
    return builder.finish(), variance


@pytest.mark.parametrize("name", MOVES)
def test_simulated_bias(name):
    table, variance = long_stage(name, rows=30)

    def model(x, level, condition):
        alpha, sigma = (float(f(level[0])) for f in (get_path("ou").alpha, get_path("ou").sigma))
        return -x / (alpha**2 * variance + sigma**2)

    key, stream = make_key(13, "cpu"), make_stream(None, CHAINS[0], 0, "cpu")
    z = run(table, model, torch.zeros(CHAINS), key=key, stream=stream).double().numpy().ravel()

    def score(value):
        return abs(np.mean(z**2) / value - 1) / math.sqrt(2 / z.size)

    assert score(exact_variance(name, GAMMA, TAU)) < 5.8
    for other in set(MOVES) - {name}:
        assert score(exact_variance(other, GAMMA, TAU)) > 8


FINE, TIME, PATHS = 2**10, 2.0, 1500


def compose(xi_z, xi_v, gamma, time):
    """Noise over pairs of neighbouring steps of length `time`: `[n, paths]` -> `[n / 2, paths]`."""
    e, z1, z2, v1, v2 = math.exp(-gamma * time), xi_z[::2], xi_z[1::2], xi_v[::2], xi_v[1::2]
    return z1 + z2 + (1 - e) / gamma * v1, e * v1 + v2


class FinePath:
    """Driving noise on a fine grid, and a nonlinear force G = q z + sin(2 z) at an anchor of 0."""

    def __init__(self, gamma, seed):
        self.gamma, self.t = gamma, stage()[0]
        rng = np.random.default_rng(seed)
        self.z, self.v = rng.standard_normal((2, PATHS))
        step = TIME / FINE
        c = host.uld_coefficients(gamma, step)
        n1, n2 = rng.standard_normal((2, FINE, PATHS))
        self.levels = {FINE: (c["z_1"] * n1 + c["z_2"] * n2, c["v_1"] * n1)}
        n = FINE
        while n > 4:
            self.levels[n // 2] = compose(*self.levels[n], gamma, TIME / n)
            n //= 2

    def normals(self, steps):
        """(n1, n2) of each of `steps` equal steps, as the rows of the free flow use them."""
        c = host.uld_coefficients(self.gamma, TIME / steps)
        xi_z, xi_v = self.levels[steps]
        n1 = xi_v / c["v_1"]
        return n1, (xi_z - c["z_1"] * n1) / c["z_2"]

    def shifted(self, steps):
        """The same over [tau / 2, 3 tau / 2] and so on: one step fewer."""
        c = host.uld_coefficients(self.gamma, TIME / steps)
        xi_z, xi_v = (x[1:-1] for x in self.levels[2 * steps])
        xi_z, xi_v = compose(xi_z, xi_v, self.gamma, TIME / (2 * steps))
        n1 = xi_v / c["v_1"]
        return n1, (xi_z - c["z_1"] * n1) / c["z_2"]

    def row(self, move, z, v, n1, n2):
        columns = rtk.kinetic_columns("score", self.t, move)
        builder = TableBuilder("ou", "score", "x")
        builder.add("uld", 0.4, **columns)
        coef = torch.tensor(builder.finish().coefficients)
        score = -np.sin(2 * z)
        state = (torch.tensor(x)[None] for x in (z, v, score, np.zeros_like(z)))
        place = torch.zeros(1, dtype=torch.int32)
        one = torch.zeros(1, dtype=torch.int64)
        noises = {"noise": torch.tensor(n1)[None], "noise2": torch.tensor(n2)[None]}
        z, v, _ = uld_step(*state, coef, place, place, one, one, **noises)
        return z[0].numpy(), v[0].numpy()

    def end(self, name, steps):
        """z at the final time by `steps` merged steps of an integrator."""
        g, tau, z, v = self.gamma, TIME / steps, self.z, self.v
        whole, shifted, halves = self.normals(steps), self.shifted(steps), self.normals(2 * steps)
        if name == "rtk-uld":
            for n in zip(*whole, strict=True):
                z, v = self.row(rtk_uld.move(g, tau), z, v, *n)
        elif name == "rtk-baoab":
            for i, n in enumerate(zip(*whole, strict=True)):
                z, v = self.row(rtk_baoab.move(g, tau, first=i == 0), z, v, *n)
        elif name == "rtk-obabo":
            c = host.uld_coefficients(g, tau / 2)
            v = c["v_from_v"] * v + c["v_1"] * halves[0][0]
            z, v = self.row(rtk_obabo.move(g, tau, first=True), z, v, z, z)
            for n in zip(*shifted, strict=True):
                z, v = self.row(rtk_obabo.move(g, tau, first=False), z, v, *n)
        else:
            half = rtk_ubu.move(g, tau, last=True)
            z, v = self.row({**half, "z_g": 0.0, "v_g": 0.0}, z, v, halves[0][0], halves[1][0])
            for n in zip(*shifted, strict=True):
                z, v = self.row(rtk_ubu.move(g, tau, last=False), z, v, *n)
            z, v = self.row(half, z, v, halves[0][-1], halves[1][-1])
        return z


COARSE = (16, 32, 64, 128)


@pytest.fixture(scope="module", params=[1.0, 2.0])
def fine(request):
    path = FinePath(request.param, seed=7)
    return path, path.end("rtk-ubu", FINE // 2)


def order(errors):
    return -np.polyfit(np.log(COARSE), np.log(errors), 1)[0]


@pytest.mark.parametrize(
    ("name", "derived"), [("rtk-uld", 1), ("rtk-baoab", 1), ("rtk-obabo", 1), ("rtk-ubu", 2)]
)
def test_strong_order(name, derived, fine):
    path, truth = fine
    errors = [np.sqrt(np.mean((path.end(name, n) - truth) ** 2)) for n in COARSE]
    assert abs(order(errors) - derived) < 0.2
    assert errors[-1] < errors[0] / 4


def test_strong_order_negative_control(fine):
    """On another path's noise the error does not fall."""
    path, truth = fine
    other = FinePath(path.gamma, seed=8)
    other.z, other.v = path.z, path.v
    errors = [np.sqrt(np.mean((other.end("rtk-ubu", n) - truth) ** 2)) for n in COARSE]
    assert abs(order(errors)) < 0.2
