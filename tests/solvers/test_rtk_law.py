"""The discrete law of the inner samplers on Gaussian targets, by the real tables and ops.

On a Gaussian every chain's law is Gaussian, with moments known exactly step by step. Each test
compares sample moments over 2^17 chains with the exact discrete law (accepted) and with the law of
the continuous-time process run equally long (rejected). A comparison is a z-score bounded by 5.8;
two-sided that is 6.6e-9, and with fewer than 150 comparisons here the false-alarm rate of the file,
at fixed seeds, is below 1e-6.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import expm, solve_discrete_lyapunov

import ardiff
from ardiff.loop.run import run
from ardiff.noise import initial_state, make_key, make_stream
from ardiff.solvers import rtk_baoab, rtk_uld
from ardiff.solvers._rtk import stages as rtk
from ardiff.tables.paths import get_path, time_grid, transition
from ardiff.tables.table import TableBuilder

CHAINS = (32, 4096)
Z_MAX = 5.8
REJECT = 12.0


def gaussian_model(path, mean, variance):
    """The exact score of data N(mean, variance)."""
    path = get_path(path)

    def model(x, level, condition=None):
        alpha, sigma = float(path.alpha(level[0].item())), float(path.sigma(level[0].item()))
        return -(x - alpha * mean) / (alpha**2 * variance + sigma**2)

    return model


def key_and_stream(seed):
    return make_key(seed, "cpu"), make_stream(None, CHAINS[0], 0, "cpu")


def variance_score(samples, exact):
    """z-score of a sample variance about a known mean of zero."""
    n = samples.size
    return (np.mean(samples**2) - exact) / (exact * math.sqrt(2 / n))


def covariance_score(a, b, var_a, var_b, cov):
    n = a.size
    return (np.mean(a * b) - cov) / math.sqrt((var_a * var_b + cov**2) / n)


def stage_of_curvature(lam):
    """A stage of the OU path whose kernel has Hessian `lam`: (transition, a, b, data variance)."""
    b = 0.4
    a = b + 0.5 * math.log(1 + 2 / lam)  # r^2 / s^2 = lam / 2
    path = get_path("ou")
    alpha, sigma = float(path.alpha(b)), float(path.sigma(b))
    return transition(path, a, b), a, b, (2 / lam - sigma**2) / alpha**2


def uld_step_law(gamma, tau, lam):
    x = gamma * tau
    a, b = -math.expm1(-x), x + math.expm1(-x)
    drift = np.array([[1 - lam * b / gamma**2, a / gamma], [-lam * a / gamma, math.exp(-x)]])
    var_z = 2 / gamma * (tau - 2 / gamma * a - math.expm1(-2 * x) / (2 * gamma))
    noise = np.array([[var_z, a**2 / gamma], [a**2 / gamma, -math.expm1(-2 * x)]])
    return drift, noise


def baoab_step_law(gamma, tau, lam):
    """One whole, unmerged step B A O A B."""
    kick = np.array([[1, 0], [-lam * tau / 2, 1]])
    drift = np.array([[1, tau / 2], [0, 1]])
    c = math.exp(-gamma * tau)
    damp = np.diag([1, c])
    after = kick @ drift
    noise = np.diag([0, -math.expm1(-2 * gamma * tau)])
    return after @ damp @ drift @ kick, after @ noise @ after.T


def continuous_law(gamma, time, lam):
    generator = np.array([[0, 1.0], [-lam, -gamma]])
    drift = expm(generator * time)
    stationary = np.diag([1 / lam, 1.0])
    return drift, stationary - drift @ stationary @ drift.T


def moments_after(drift, noise, start, steps):
    law = start
    for _ in range(steps):
        law = drift @ law @ drift.T + noise
    return law


@pytest.mark.parametrize(
    ("gamma", "tau", "lam", "steps"),
    [(1, 0.5, 1, 12), (2, 0.5, 1, 10), (5, 0.3, 2, 16), (5, 0.8, 1, 8)],
)
def test_uld_follows_its_discrete_law(gamma, tau, lam, steps):
    t, a, b, variance = stage_of_curvature(lam)
    builder = TableBuilder("ou", "score", "rtk-uld")
    builder.add("uld", a, **rtk.kinetic_start("score", t, "ancestral"))
    for _ in range(steps):
        columns = rtk.kinetic_columns("score", t, rtk_uld.move(gamma, tau))
        builder.add("uld", b, **columns)
    table = builder.finish()
    key, stream = key_and_stream(11)
    # from x_a = 0 everything is centred: z starts from N(0, w^2), v from N(0, 1)
    x = torch.zeros(CHAINS)
    z = run(table, gaussian_model("ou", 0.0, variance), x, key=key, stream=stream)
    z = z.double().numpy().ravel()
    start = np.diag([t.width**2, 1.0])
    exact = moments_after(*uld_step_law(gamma, tau, lam), start, steps)[0, 0]
    continuous = moments_after(*continuous_law(gamma, tau * steps, lam), start, 1)[0, 0]
    assert abs(variance_score(z, exact)) < Z_MAX
    assert abs(z.mean() / math.sqrt(exact / z.size)) < Z_MAX
    assert abs(variance_score(z, continuous)) > REJECT


@pytest.mark.parametrize("gamma", [1.0, 2.0, 5.0])
def test_uld_velocity_and_covariance(gamma):
    """z, v and their covariance after each of six steps, by the op on the rows of a table."""
    from ardiff_kernels import ops

    lam, tau, steps = 1.5, 0.45, 6
    t, a, b, variance = stage_of_curvature(lam)
    builder = TableBuilder("ou", "score", "rtk-uld")
    builder.add("uld", a, **rtk.kinetic_start("score", t, "ancestral"))
    columns = rtk.kinetic_columns("score", t, rtk_uld.move(gamma, tau))
    builder.add("uld", b, **columns)
    tensors = builder.finish().to("cpu")
    model = gaussian_model("ou", 0.0, variance)
    key, stream = key_and_stream(5)
    z, v, anchor = (torch.zeros(CHAINS) for _ in range(3))
    law, worst = np.diag([t.width**2, 1.0]), []
    for i in range(steps + 1):
        row, draw = tensors.row[min(i, 1)][None], torch.tensor([i], dtype=torch.int32)
        out = model(z, tensors.level[min(i, 1)][None])
        z, v, anchor = ops.uld_step(z, v, out, anchor, tensors.coef, row, draw, key, stream)
        if i > 0:
            law = moments_after(*uld_step_law(gamma, tau, lam), law, 1)
        zs, vs = (u.double().numpy().ravel() for u in (z, v))
        assert abs(variance_score(zs, law[0, 0])) < Z_MAX
        assert abs(variance_score(vs, law[1, 1])) < Z_MAX
        assert abs(covariance_score(zs, vs, law[0, 0], law[1, 1], law[0, 1])) < Z_MAX
        if i > 0:
            wrong = moments_after(
                *continuous_law(gamma, tau * i, lam), np.diag([t.width**2, 1.0]), 1
            )
            worst.append(abs(variance_score(zs, wrong[0, 0])))
            worst.append(abs(variance_score(vs, wrong[1, 1])))
            worst.append(abs(covariance_score(zs, vs, wrong[0, 0], wrong[1, 1], wrong[0, 1])))
    assert max(worst) > REJECT


@pytest.mark.parametrize(("tau", "lam", "steps"), [(0.4, 1.0, 8), (0.1, 2.0, 20), (0.9, 1.0, 6)])
def test_ula_follows_its_discrete_law(tau, lam, steps):
    t, a, b, variance = stage_of_curvature(lam)
    builder = TableBuilder("ou", "score", "rtk-ula")
    builder.add("diffusion", a, **rtk.overdamped_start("score", t, "ancestral"))
    for _ in range(steps):
        builder.add("diffusion", b, **rtk.overdamped_columns("score", t, tau))
    table = builder.finish()
    key, stream = key_and_stream(12)
    z = run(table, gaussian_model("ou", 0.0, variance), torch.zeros(CHAINS), key=key, stream=stream)
    z = z.double().numpy().ravel()
    exact = t.width**2
    for _ in range(steps):
        exact = (1 - tau * lam) ** 2 * exact + 2 * tau
    decay = math.exp(-2 * lam * tau * steps)
    continuous = decay * t.width**2 + (1 - decay) / lam
    assert abs(variance_score(z, exact)) < Z_MAX
    assert abs(z.mean() / math.sqrt(exact / z.size)) < Z_MAX
    assert abs(variance_score(z, continuous)) > REJECT


def whole_run_variance(name, grid, variance, gamma, tau, inner):
    """Exact Var(x) after every stage of an RTK run on data N(0, variance), by the formulas.

    The state (z, v, x_a) is jointly Gaussian; a stage first sets (z, v, x_a) from z, then moves
    (z, v) by the sampler's law about the conditional mean q x_a / (r lam) = `pull` x_a. Returns the
    discrete law's variance and the one of the continuous-time process.
    """
    path = get_path("ou")
    results = []
    for discrete in (True, False):
        var = 1.0
        for a, b in zip(grid[:-1], grid[1:], strict=True):
            t = transition(path, a, b)
            on_x, on_x0 = rtk.ancestral(t)
            total_a = t.alpha_a**2 * variance + t.sigma_a**2
            start = on_x + on_x0 * t.alpha_a * variance / total_a
            q = t.r**2 / t.s2
            lam = 1 / (t.alpha_b**2 * variance + t.sigma_b**2) + q
            pull = q / (t.r * lam)
            if name == "rtk-ula":
                step = tau * t.width**2
                factor, noise = 1 - step * lam, 2 * step
                if not discrete:
                    factor = math.exp(-step * lam)
                    noise = (1 - factor**2) / lam
                drift, noise = np.diag([factor, 1]), np.diag([noise, 0])
            else:
                g, step = gamma / t.width, tau * t.width
                law = {"rtk-uld": uld_step_law, "rtk-baoab": baoab_step_law}[name]
                drift, noise = (law if discrete else continuous_law)(g, step, lam)
            # deviations from pull * x_a: their mean is linear in x_a, their covariance free of it
            mean = np.array([start - pull, 0.0])
            spread = np.diag([t.width**2, 1.0])
            for _ in range(inner):
                mean = drift @ mean
                spread = drift @ spread @ drift.T + noise
            var = (mean[0] + pull) ** 2 * var + spread[0, 0]
        results.append(var)
    return results


@pytest.mark.parametrize(
    ("name", "gamma"),
    [("rtk-ula", None), *((n, g) for n in ("rtk-uld", "rtk-baoab") for g in (1.0, 2.0, 5.0))],
)
def test_whole_runs_follow_the_discrete_law(name, gamma):
    variance, inner = 0.8, 3
    tau = {"rtk-ula": 0.9, "rtk-uld": 1.2, "rtk-baoab": 1.6}[name]
    grid = time_grid("ou", 5, ratio_max=20.0, ratio_min=0.1)
    table = ardiff.solver(
        name, path="ou", prediction="score", steps=16, stages=4, inner=inner, grid=grid,
        denoise_last=False, tau=tau, gamma=gamma,
    )  # fmt: skip
    key, stream = key_and_stream(21)
    x = initial_state(table, key, stream, CHAINS[1])
    x = run(table, gaussian_model("ou", 0.0, variance), x, key=key, stream=stream)
    exact, continuous = whole_run_variance(name, grid, variance, gamma, tau, inner)
    x = x.double().numpy().ravel()
    assert abs(variance_score(x, exact)) < Z_MAX
    assert abs(x.mean() / math.sqrt(exact / x.size)) < Z_MAX
    assert abs(variance_score(x, continuous)) > REJECT


STATIONARY = [
    (2.0, 0.1, 1.0, 1.025619214360524, 1.025536206126968, 4.253199697802873e-5),
    (2.0, 0.5, 1.0, 1.139806548675801, 1.130245286038583, 5.338539817348249e-3),
    (5.0, 0.3, 2.0, 1.063002920758889, 1.053729633206657, 1.943136216610991e-3),
]


@pytest.mark.parametrize(("gamma", "tau", "lam", "var_z", "var_v", "cov"), STATIONARY)
def test_stationary_values_of_uld_rows(gamma, tau, lam, var_z, var_v, cov):
    """The fixed point of the rows' own coefficients, against values solved with 40 digits."""
    t, _, _, _ = stage_of_curvature(lam)
    c = rtk.kinetic_columns("score", t, rtk_uld.move(gamma, tau))
    total = 2 / lam  # variance at level b
    drift = np.array(
        [
            [c["z_z"] + c["z_d"] - c["z_o"] / total, c["z_v"]],
            [c["v_z"] + c["v_d"] - c["v_o"] / total, c["v_v"]],
        ]
    )
    factor = np.array([[c["z_1"], c["z_2"]], [c["v_1"], 0]])
    law = solve_discrete_lyapunov(drift, factor @ factor.T)
    assert lam * law[0, 0] == pytest.approx(var_z, rel=1e-12)
    assert law[1, 1] == pytest.approx(var_v, rel=1e-12)
    assert law[0, 1] == pytest.approx(cov, rel=1e-9)
    continuous = np.diag([1 / lam, 1.0])
    assert np.abs(law - continuous).max() > 1e-2


def test_stationary_position_of_baoab_is_exact():
    t, _, _, _ = stage_of_curvature(1.0)
    c = rtk.kinetic_columns("score", t, rtk_baoab.move(2.0, 0.4, first=False))
    drift = np.array(
        [
            [c["z_z"] + c["z_d"] - c["z_o"] / 2, c["z_v"]],
            [c["v_z"] + c["v_d"] - c["v_o"] / 2, c["v_v"]],
        ]
    )
    factor = np.array([[c["z_1"], 0], [c["v_1"], 0]])
    law = solve_discrete_lyapunov(drift, factor @ factor.T)
    assert law[0, 0] == pytest.approx(1.0, rel=1e-12)


def test_stationary_variance_of_ula_rows():
    lam, tau = 1.5, 0.3
    t, _, _, variance = stage_of_curvature(lam)
    c = rtk.overdamped_columns("score", t, tau)
    total = t.alpha_b**2 * variance + t.sigma_b**2
    factor = c["x_x"] + c["x_d"] + c["x_0"] * (c["p_x"] - c["p_o"] / total)
    assert c["x_n"] ** 2 / (1 - factor**2) == pytest.approx(
        1 / (lam * (1 - tau * lam / 2)), rel=1e-12
    )
