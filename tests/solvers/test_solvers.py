"""Each solver's rows against the formulas of its paper, run in float64 on the same normals."""

from __future__ import annotations

import functools
import inspect
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad

import ardiff
from ardiff.solvers import SOLVERS, solver_options, table_function
from ardiff.tables.paths import PATHS, PREDICTIONS
from tests._support import multistep_originals as originals
from tests._support.solver_problem import Problem, Rows, ancestral_law, between, run_table

STEPS = 13
ADJUSTED = [name for name in SOLVERS if "accept" in solver_options(name)]  # tested on their own


def ddpm(problem, x, levels, normals):
    for a, b in zip(levels[:-1], levels[1:], strict=True):
        mean, width = ancestral_law(problem, x, a, b)
        x = mean + width * next(normals)[0]
    return x


def ddpm_ei(problem, x, levels, normals):
    # in OU coordinates y = x / c, e^-t = alpha / c; the score of y is c times the score of x
    for a, b in zip(levels[:-1], levels[1:], strict=True):
        (alpha_a, sigma_a), (alpha_b, sigma_b) = problem.at(a), problem.at(b)
        c_a, c_b = math.hypot(alpha_a, sigma_a), math.hypot(alpha_b, sigma_b)
        h = math.log(c_a / alpha_a) - math.log(c_b / alpha_b)
        y = math.exp(h) * x / c_a + 2 * (math.exp(h) - 1) * c_a * problem.score(x, a)
        x = c_b * (y + math.sqrt(math.exp(2 * h) - 1) * next(normals)[0])
    return x


def ddim(problem, x, levels, normals):
    for a, b in zip(levels[:-1], levels[1:], strict=True):
        (alpha_a, sigma_a), (alpha_b, sigma_b) = problem.at(a), problem.at(b)
        x0 = problem.denoise(x, a)
        x = alpha_b * x0 + sigma_b * (x - alpha_a * x0) / sigma_a
        next(normals)
    return x


def dpmpp_2m(problem, x, levels, normals, sde=False):
    old = None
    for a, b in zip(levels[:-1], levels[1:], strict=True):
        (alpha_a, sigma_a), (alpha_b, sigma_b) = problem.at(a), problem.at(b)
        lam_a, lam_b = math.log(alpha_a / sigma_a), math.log(alpha_b / sigma_b)
        h, x0 = lam_b - lam_a, problem.denoise(x, a)
        slope = 0.0
        if old is not None:
            x0_old, lam_old = old
            slope = (x0 - x0_old) / ((lam_a - lam_old) / h)
        xi = next(normals)[0]
        if sde:  # diffusers' sde-dpmsolver++ with the midpoint rule
            gain = alpha_b * (1 - math.exp(-2 * h))
            x = sigma_b / sigma_a * math.exp(-h) * x + gain * x0 + 0.5 * gain * slope
            x = x + sigma_b * math.sqrt(1 - math.exp(-2 * h)) * xi
        else:
            gain = alpha_b * (math.exp(-h) - 1)
            x = sigma_b / sigma_a * x - gain * x0 - 0.5 * gain * slope
        old = x0, lam_a
    return x


def dpmpp_2m_sde(problem, x, levels, normals):
    return dpmpp_2m(problem, x, levels, normals, sde=True)


def unipc(problem, x, levels, normals):
    """Zhao et al. 2023, Algorithms 5 and 6: each step anew from its corrected start, R rho = b."""
    at = [problem.at(level) for level in levels]
    lam = [math.log(alpha / sigma) for alpha, sigma in at]
    start, old, slope, r = x, None, 0.0, None
    x0 = problem.denoise(x, levels[0])
    for i in range(len(levels) - 1):
        h, (alpha_b, sigma_b) = lam[i + 1] - lam[i], at[i + 1]
        big = math.exp(-h) - 1
        linear = sigma_b / at[i][1] * start - alpha_b * big * x0
        if i > 0:
            r = (lam[i - 1] - lam[i]) / h
            slope = (old - x0) / r
        x = linear - alpha_b * big * slope / 2
        next(normals)
        phi_1 = big / -h - 1
        phi_2 = phi_1 / -h - 1 / 2
        rho = (0.0, 0.5)
        if i > 0:
            rho = np.linalg.solve([[1.0, 1.0], [r, 1.0]], [phi_1 / big, 2 * phi_2 / big])
        old, x0 = x0, problem.denoise(x, levels[i + 1])
        start = linear - alpha_b * big * (rho[0] * slope + rho[1] * (x0 - old))
    return x


def dpmpp_3m(problem, x, levels, normals, lower_order_final):
    """diffusers' DPMSolverMultistepScheduler of order 3, its orders not lowered at the end."""
    seen, lam = [], [math.log(alpha / sigma) for alpha, sigma in map(problem.at, levels)]
    for i in range(len(levels) - 1):
        (_, sigma_a), (alpha_b, sigma_b) = problem.at(levels[i]), problem.at(levels[i + 1])
        seen = [problem.denoise(x, levels[i]), *seen][:3]
        h = lam[i + 1] - lam[i]
        x = sigma_b / sigma_a * x - alpha_b * (math.exp(-h) - 1) * seen[0]
        if i == 1:
            slope = (seen[0] - seen[1]) / ((lam[1] - lam[0]) / h)
            x = x - 0.5 * alpha_b * (math.exp(-h) - 1) * slope
        if i > 1:
            r0, r1 = (lam[i] - lam[i - 1]) / h, (lam[i - 1] - lam[i - 2]) / h
            d0, d1 = (seen[0] - seen[1]) / r0, (seen[1] - seen[2]) / r1
            first, second = d0 + r0 / (r0 + r1) * (d0 - d1), (d0 - d1) / (r0 + r1)
            x = x + alpha_b * ((math.exp(-h) - 1) / h + 1) * first
            x = x - alpha_b * ((math.exp(-h) - 1 + h) / h**2 - 0.5) * second
        next(normals)
    return x


def deis(problem, x, levels, normals, lower_order_final):
    """Zhang & Chen 2023: the polynomial in log s through the noises, integrated over s."""
    seen, rho = [], [sigma / alpha for alpha, sigma in map(problem.at, levels)]
    for i in range(len(levels) - 1):
        alpha_a, sigma_a = problem.at(levels[i])
        seen = [(x - alpha_a * problem.denoise(x, levels[i])) / sigma_a, *seen][:3]
        nodes, y = np.log(rho[i::-1][: len(seen)]), x / alpha_a
        for j, eps in enumerate(seen):
            others = np.delete(nodes, j)
            basis = np.poly1d(others, True) / np.prod(nodes[j] - others)
            at = np.log(rho[i]), np.log(rho[i + 1])
            y = y + quad(lambda u, of=basis: math.exp(u) * of(u), *at, epsabs=1e-13)[0] * eps
        x = problem.at(levels[i + 1])[0] * y
        next(normals)
    return x


def sa(problem, x, levels, normals):
    """diffusers' SASolverScheduler: predictor and corrector of order 2, tau 1 within a window."""
    at = [problem.at(level) for level in levels]
    lam = [math.log(alpha / sigma) for alpha, sigma in at]
    start, old, x0 = x, None, problem.denoise(x, levels[0])
    for i in range(len(levels) - 1):
        (_, sigma_a), (alpha_b, sigma_b), h = at[i], at[i + 1], lam[i + 1] - lam[i]
        rate = 1 + (0.7 <= sigma_a / at[i][0] <= 25.0)
        fixed = sigma_b / sigma_a * math.exp((1 - rate) * h) * start
        fixed = fixed + sigma_b * math.sqrt(1 - math.exp(2 * (1 - rate) * h)) * next(normals)[0]
        fixed = fixed + alpha_b * (1 - math.exp(-rate * h)) * x0
        slope = 0.0 if old is None else (x0 - old) / (lam[i] - lam[i - 1])
        x = fixed + alpha_b * rate * h**2 / 2 * slope
        old, x0 = x0, problem.denoise(x, levels[i + 1])
        start = fixed + alpha_b * rate * h / 2 * (x0 - old)
    return x


def original(loop):
    """A loop over the sigmas of k-diffusion or ComfyUI, on the levels of a path."""
    return functools.partial(originals.on_levels, loop)


def heun(problem, x, levels, normals):
    """Karras et al. 2022, Algorithm 1, in y = x / alpha and s = sigma / alpha."""
    y = x / problem.at(levels[0])[0]
    for a, b in zip(levels[:-1], levels[1:], strict=True):
        (alpha_a, sigma_a), (alpha_b, sigma_b) = problem.at(a), problem.at(b)
        s_a, s_b = sigma_a / alpha_a, sigma_b / alpha_b
        slope = (y - problem.denoise(alpha_a * y, a)) / s_a
        y1 = y + (s_b - s_a) * slope
        slope1 = (y1 - problem.denoise(alpha_b * y1, b)) / s_b
        y = y + (s_b - s_a) * (slope + slope1) / 2
        next(normals), next(normals)
    return alpha_b * y


def flow(problem, x, levels, normals, sde):
    """Velocity v and score in NextStep-1's time: 0 at the noise, 1 at the data."""
    for a, b in zip(levels[:-1], levels[1:], strict=True):
        (alpha_a, sigma_a), (alpha_b, sigma_b) = problem.at(a), problem.at(b)
        t, t_next = alpha_a / (alpha_a + sigma_a), alpha_b / (alpha_b + sigma_b)
        x0, y, dt = problem.denoise(x, a), x / (alpha_a + sigma_a), t_next - t
        v = (x0 - y) / (1 - t)
        xi = next(normals)[0]
        if sde:
            score = (t * v - y) / ((1 - t) ** 2 + t * (1 - t))
            y = y + (v + (1 - t) * score) * dt + math.sqrt(2 * (1 - t) * dt) * xi
        else:
            y = y + v * dt
        x = (alpha_b + sigma_b) * y
    return x


def flow_euler(problem, x, levels, normals):
    return flow(problem, x, levels, normals, sde=False)


def flow_sde(problem, x, levels, normals):
    return flow(problem, x, levels, normals, sde=True)


def rtk_stages(inner_sampler):
    def run(problem, x, levels, normals, inner, warm_start, **step):
        for a, b in zip(levels[:-1], levels[1:], strict=True):
            alpha_a, sigma_a, alpha_b, sigma_b, r, s2 = between(problem, a, b)
            mean, width = ancestral_law(problem, x, a, b)
            n1, n2 = next(normals)
            scale = width
            if warm_start == "gaussian-factor":
                mean, scale = x / r, math.sqrt(s2) / r
            anchor = x

            def gradient(z, anchor=anchor, r=r, s2=s2, b=b):
                return -problem.score(z, b) + (r**2 * z - r * anchor) / s2

            x = inner_sampler(gradient, mean, scale, (n1, n2), inner, normals, width, **step)
        return x

    return run


def posterior(problem, x, levels, normals, warm_start, gain, window, ode, tau=0.4):
    """Stages in q = (z - m(De)) / sqrt(V) with the residual force F, as on paper."""
    y, known, old = x / problem.at(levels[0])[0], None, None
    for a, b in zip(levels[:-1], levels[1:], strict=True):
        (alpha_a, sigma_a), (alpha_b, sigma_b) = problem.at(a), problem.at(b)
        s_a, s_b = sigma_a / alpha_a, sigma_b / alpha_b
        h, k = math.log(s_a / s_b), (s_b / s_a) ** 2
        scale, inside = s_b * math.sqrt(1 - k), window[0] <= s_b <= window[1]
        data = problem.denoise(alpha_a * y, a) if known is None else known
        known, estimate = None, data
        first_order = (
            warm_start != "second-order" if inside else not ode and warm_start == "ancestral"
        )
        if old is not None and not first_order:
            estimate = data + h / (2 * old[1]) * (data - old[0])
        old = data, h
        n = next(normals)[0]
        if ode and not inside:
            y = s_b / s_a * y + (1 - s_b / s_a) * estimate
            continue
        mean = k * y + (1 - k) * estimate
        z = mean + scale * n
        if inside:
            if warm_start == "gaussian-factor":
                z = y + math.sqrt(s_a**2 - s_b**2) * n
            q, e = (z - mean) / scale, math.exp(-tau)
            known = problem.denoise(alpha_b * z, b)
            force = (1 - k) / scale * (known - estimate)
            q = e * q + (1 - e if gain is None else gain) * force
            z = mean + scale * (q + math.sqrt(1 - e * e) * next(normals)[0])
        y = z
    return alpha_b * y


def harmonic(problem, x, levels, normals, warm_start="second-order"):
    return posterior(problem, x, levels, normals, warm_start, None, (0.1, 0.7), ode=False)


def hybrid(problem, x, levels, normals, warm_start="second-order"):
    return posterior(problem, x, levels, normals, warm_start, 0.5, (0.1, 0.25), ode=True)


def ula(gradient, mean, scale, start, inner, normals, width, tau):
    z, tau = mean + scale * start[0], tau * width**2
    for _ in range(inner):
        z = z - tau * gradient(z) + math.sqrt(2 * tau) * next(normals)[0]
    return z


def uld(gradient, mean, scale, start, inner, normals, width, tau, gamma):
    z, v = mean + scale * start[1], start[0]
    tau, gamma = tau * width, gamma / width
    e = math.exp(-gamma * tau)
    a, b = 1 - e, gamma * tau - (1 - e)
    var_z = 2 / gamma * (tau - 2 / gamma * (1 - e) + (1 - e**2) / (2 * gamma))
    var_v, cov = 1 - e**2, (1 - e) ** 2 / gamma
    for _ in range(inner):
        n1, n2 = next(normals)
        g = gradient(z)
        xi_v = math.sqrt(var_v) * n1
        xi_z = cov / math.sqrt(var_v) * n1 + math.sqrt(var_z - cov**2 / var_v) * n2
        z, v = z + a / gamma * v - b / gamma**2 * g + xi_z, e * v - a / gamma * g + xi_v
    return z


def dpum(problem, x, levels, normals, predictor, corrector, **step):
    """DPUM of Chen et al. 2023 in OU coordinates y = x / c as `ddpm_ei`; the corrector
    has step and friction in units of L^-1/2 and L^1/2, L = 1 / sigma^2."""
    for i, (a, b) in enumerate(zip(levels[:-1], levels[1:], strict=True), 1):
        (alpha_a, sigma_a), (alpha_b, sigma_b) = problem.at(a), problem.at(b)
        c_a, c_b = math.hypot(alpha_a, sigma_a), math.hypot(alpha_b, sigma_b)
        h = math.log(c_a / alpha_a) - math.log(c_b / alpha_b)
        x = c_b * (math.exp(h) * x / c_a + (math.exp(h) - 1) * c_a * problem.score(x, a))
        velocity = next(normals)[0]
        if i % predictor == 0 or i == len(levels) - 1:
            start = velocity, np.zeros_like(x)  # the position has no noise at the start
            gradient = functools.partial(lambda z, b: -problem.score(z, b), b=b)
            x = uld(gradient, x, 0.0, start, corrector, normals, sigma_b, **step)
    return x


def baoab(gradient, mean, scale, start, inner, normals, width, tau, gamma):
    z, v = mean + scale * start[1], start[0]
    tau, gamma = tau * width, gamma / width
    c = math.exp(-gamma * tau)
    for _ in range(inner):
        v = v - tau / 2 * gradient(z)
        z = z + tau / 2 * v
        v = c * v + math.sqrt(1 - c * c) * next(normals)[0]
        z = z + tau / 2 * v
        v = v - tau / 2 * gradient(z)
    return z


def obabo(gradient, mean, scale, start, inner, normals, width, tau, gamma):
    """Unmerged, but for the O that would begin a stage on a fresh velocity."""
    z, v = mean + scale * start[1], start[0]
    tau, gamma = tau * width, gamma / width
    c = math.exp(-gamma * tau)
    next(normals)
    for i in range(inner):
        v = v - tau / 2 * gradient(z)
        z = z + tau * v
        v = v - tau / 2 * gradient(z)
        if i < inner - 1:
            v = c * v + math.sqrt(1 - c * c) * next(normals)[0]
    return z


def free_flow(z, v, gamma, time, n1, n2):
    e = math.exp(-gamma * time)
    var_z = 2 / gamma * (time - 2 / gamma * (1 - e) + (1 - e**2) / (2 * gamma))
    var_v, cov = 1 - e**2, (1 - e) ** 2 / gamma
    xi_z = cov / math.sqrt(var_v) * n1 + math.sqrt(var_z - cov**2 / var_v) * n2
    return z + (1 - e) / gamma * v + xi_z, e * v + math.sqrt(var_v) * n1


def ubu(gradient, mean, scale, start, inner, normals, width, tau, gamma):
    """The first half flow by its joint law with the start; then B and the flow to the next B."""
    tau, gamma = tau * width, gamma / width
    half = math.exp(-gamma * tau / 2)
    drift = (1 - half) / gamma
    var_z = 2 / gamma * (tau / 2 - 2 * drift + (1 - half**2) / (2 * gamma))
    covariance = np.array([[scale**2 + drift**2 + var_z, drift], [drift, 1.0]])
    assert covariance[0, 1] == pytest.approx(drift * half + (1 - half) ** 2 / gamma)
    v = start[0]
    z = mean + drift * v + math.sqrt(np.linalg.det(covariance)) * start[1]
    for i in range(inner):
        v = v - tau * gradient(z)
        z, v = free_flow(z, v, gamma, tau if i < inner - 1 else tau / 2, *next(normals))
    return z


KINETIC = {"tau": 0.35, "gamma": 1.7}
CASES = {
    "ddpm": (ddpm, {}),
    "ddpm-ei": (ddpm_ei, {}),
    "ddim": (ddim, {}),
    "dpmpp-2m": (dpmpp_2m, {}),
    "dpmpp-2m-sde": (dpmpp_2m_sde, {}),
    "rtk-ula": (rtk_stages(ula), {"tau": 0.25}),
    "rtk-uld": (rtk_stages(uld), KINETIC),
    "dpum": (dpum, {"predictor": 3, "corrector": 2, **KINETIC}),
    "rtk-baoab": (rtk_stages(baoab), KINETIC),
    "rtk-obabo": (rtk_stages(obabo), KINETIC),
    "rtk-ubu": (rtk_stages(ubu), KINETIC),
    "rtk-harmonic": (harmonic, {}),
    "rtk-hybrid": (hybrid, {}),
    "heun": (heun, {}),
    "unipc": (unipc, {}),
    "dpmpp-3m": (dpmpp_3m, {"lower_order_final": False}),
    "dpmpp-3m-sde": (original(originals.dpmpp_3m_sde), {}),
    "deis": (deis, {"lower_order_final": False}),
    "euler": (original(originals.euler), {}),
    "lms": (original(originals.lms), {}),
    "ipndm": (original(originals.ipndm), {}),
    "gradient-estimation": (original(originals.gradient_estimation), {}),
    "res-multistep": (original(originals.res_multistep), {}),
    "er-sde": (original(originals.er_sde), {}),
    "sa": (sa, {}),
    "flow-euler": (flow_euler, {}),
    "flow-sde": (flow_sde, {}),
}


def expected(name, problem, options, denoise_last):
    """The paper's loop on the solver's default grid, and the number of levels it used."""
    function, step = CASES[name]
    last = int(denoise_last)
    rtk_options = {}
    n = STEPS + 1 - last
    if name == "heun":
        n = (STEPS - last) // 2 + 1
    if name == "dpum":
        n = 8 - last  # two stages of 3 + 2 calls, and where there is room one of 1 + 2
    if name in ("rtk-harmonic", "rtk-hybrid"):
        rtk_options = options
    elif name.startswith("rtk"):
        start = options.get("warm_start", "ancestral")
        n = (STEPS - last) // (2 + (start == "ancestral")) + 1
        rtk_options = {"inner": 2, "warm_start": start}
    high, low = min(40, problem.path.ratio_max), max(0.002, problem.path.ratio_min)
    levels = problem.path.level(np.geomspace(high, low, n).clip(low, high))
    normals = Rows(problem.normals)
    x = problem.path.init_scale(levels[0]) * problem.start
    if name == "lms":  # the one whose last step, to the data, is no data prediction
        return function(problem, x, levels, normals, to_data=denoise_last)
    x = function(problem, x, levels, normals, **rtk_options, **step)
    return problem.denoise(x, levels[-1]) if denoise_last else x


def default_option(name, option):
    return inspect.signature(table_function(name)).parameters[option].default


VARIANTS = [(name, {}) for name in CASES] + [
    (name, {"warm_start": start})
    for name in CASES
    for start in ("gaussian-factor", "ancestral")
    if "warm_start" in solver_options(name) and start != default_option(name, "warm_start")
]


def test_every_solver_has_a_case():
    folder = Path(__file__).parent
    originals = "".join(f.read_text() for f in sorted(folder.glob("test_*originals*.py")))
    compared = {name for name in SOLVERS if f'"{name}"' in originals}
    missing = set(SOLVERS) - set(CASES) - set(ADJUSTED) - compared - {"learned"}  # test_learned.py
    assert not missing, "add the new solver's formulas to CASES, or compare it with its original"


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("name", "options"), VARIANTS, ids=[f"{n}-{o.get('warm_start', '')}" for n, o in VARIANTS]
)
def test_rows_are_the_papers_formulas(name, options, path, prediction):
    problem = Problem(path)
    for denoise_last in (True, False) if prediction == "sample" else (True,):
        table = ardiff.solver(
            name, path=path, prediction=prediction, steps=STEPS, denoise_last=denoise_last,
            **options, **CASES[name][1],
        )  # fmt: skip
        assert table.calls <= STEPS and table.solver == name and table.prediction == prediction
        want = expected(name, problem, options, denoise_last)
        # rounding is amplified by the stages' 1 / r and by eps prediction near alpha = 0
        np.testing.assert_allclose(run_table(table, problem), want, rtol=0, atol=3e-10)


@pytest.mark.parametrize("corrector", [1, 3])
@pytest.mark.parametrize("predictor", [1, 3])
def test_rows_of_dpum(predictor, corrector):
    """A stage is `predictor` rows from a to b, then `corrector` rows at level b; the last is
    shorter where that makes use of the calls."""
    options = {"path": "ou", "prediction": "score", "predictor": predictor, "corrector": corrector}
    for steps in range(1 + corrector, 40):
        table = ardiff.solver("dpum", steps=steps, denoise_last=False, **options)
        ode = table.column("z_v") == 0  # a step of the ODE has no velocity
        count = int(ode.sum())
        stage = [True] * predictor + [False] * corrector
        whole = stage * (count // predictor)
        rest = count % predictor
        wanted = whole + ([True] * rest + [False] * corrector) * (rest > 0)
        assert ode.tolist() == wanted and table.calls == len(wanted) <= steps
        one_more = count + 1 + corrector * -(-(count + 1) // predictor)
        assert one_more > steps
        fresh = table.column("v_1")[ode]
        begins = [i % predictor == 0 or i == count for i in range(1, count + 1)]
        assert fresh.tolist() == [float(b) for b in begins]
    table = ardiff.solver("dpum", steps=50, stages=2, **options)
    assert table.calls == 2 * (predictor + corrector) + 1


def test_dpum_says_what_it_needs():
    options = {"path": "ou", "prediction": "score"}
    with pytest.raises(ValueError, match="predictor=1 and corrector=1 needs steps >= 3, got st"):
        ardiff.solver("dpum", steps=2, **options)
    with pytest.raises(ValueError, match="needs steps >= 19, got steps=18"):
        ardiff.solver("dpum", steps=18, stages=9, **options)
    with pytest.raises(ValueError, match="predictor must be an integer of 1 or more, got 0"):
        ardiff.solver("dpum", steps=27, predictor=0, **options)


def test_that_the_comparison_can_fail():
    problem = Problem("ou")
    table = ardiff.solver("ddpm", path="ou", prediction="epsilon", steps=STEPS)
    wrong = table.coefficients.copy()
    wrong[5, 4] *= 1 + 1e-6
    table = ardiff.StepTable(
        wrong, table.level, table.calls_model, table.op, table.init_scale, "ou", "epsilon", "ddpm"
    )
    want = expected("ddpm", problem, {}, True)
    assert np.abs(run_table(table, problem) - want).max() > 1e-9


def test_defaults_of_the_rtk_solvers():
    options = {"path": "ou", "prediction": "score", "steps": 64}
    table = ardiff.solver("rtk-uld", **options)
    same = ardiff.solver("rtk-uld", **options, stages=21, inner=2, gamma=2.0, tau=0.4)
    np.testing.assert_array_equal(table.coefficients, same.coefficients)
    assert table.calls == 64 and len(table) == 64 and table.init_scale == 1
    start = table.column("a_z") != 0
    assert start.sum() == 21 and start[0] and table.calls_model.all()
    free = ardiff.solver("rtk-uld", **options, warm_start="gaussian-factor")
    assert free.calls <= 64 and (~free.calls_model).sum() == 31
    assert ardiff.solver("rtk-uld", **options, stages=10).calls == 10 * 6 + 1


def test_envelope_units():
    """gamma / w and tau w: the velocity decays by e^-(gamma_e tau_e) a step everywhere."""
    table = ardiff.solver("rtk-uld", path="edm", prediction="sample", steps=40, gamma=3.0, tau=0.2)
    inner = table.column("z_d") != 0
    np.testing.assert_allclose(table.column("v_v")[inner], math.exp(-0.6), rtol=1e-12)


def test_a_table_is_made_once_and_packs_pairs():
    options = {"path": "vp-cosine", "prediction": "epsilon", "steps": 32}
    table = ardiff.solver("rtk-uld", **options)
    assert ardiff.solver("rtk-uld", **options) is table
    packed = table.coef().double()
    assert packed.dtype == torch.float64 and table.coef().dtype == torch.float32
    for high, low in ((0, 1), (12, 13)):
        exact = torch.tensor(table.coefficients[:, high])
        together = packed[:, high] + packed[:, low]
        torch.testing.assert_close(together, exact, rtol=1e-14, atol=0)
    assert table.to("cpu") is table.to(torch.device("cpu"))
    with pytest.raises(ValueError):
        table.coefficients[0, 0] = 1.0


def test_discovery_names_modules():
    folder = Path(ardiff.solvers.__file__).parent
    files = {f.stem.replace("_", "-") for f in folder.glob("[!_]*.py")}
    assert files == set(SOLVERS)
