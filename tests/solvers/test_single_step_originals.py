"""Single-step, ancestral, distilled and CFG++ solvers give the samples of their originals.

Tables are run in float64 on the same normals as the loops of `tests/_support/single_step_loops.py`,
on every path in y = x / alpha, s = sigma / alpha, and on ``flow`` as it is where the original has a
form for flows; with guidance by the loop itself in float32.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import ardiff
from ardiff.loop.run import run
from ardiff.tables.paths import PATHS, PREDICTIONS, time_grid
from tests._support import single_step_loops as loops
from tests._support.solver_problem import Problem, run_table

LEVELS = 7
TWO, THREE = 2 * (LEVELS - 1), 3 * (LEVELS - 1)  # calls before the last data prediction
RESTART = {"restart_min": 0.06, "restart_max": 0.4, "restarts": 2, "restart_steps": 2}

# solver, its options, calls but for the last, the loop in y and s, the loop's own options, the loop
# of the original's form for flows
CASES = {
    "euler-ancestral": ("euler-ancestral", {}, LEVELS - 1, loops.euler_ancestral, {"eta": 1.0},
                        loops.euler_ancestral_flow),
    "euler-ancestral-0.6": ("euler-ancestral", {"eta": 0.6}, LEVELS - 1, loops.euler_ancestral,
                            {"eta": 0.6}, loops.euler_ancestral_flow),
    "dpmpp-2s-ancestral": ("dpmpp-2s-ancestral", {}, TWO, loops.dpmpp_2s_ancestral, {"eta": 1.0},
                           loops.dpmpp_2s_ancestral_flow),
    "dpmpp-2s-ancestral-0": ("dpmpp-2s-ancestral", {"eta": 0.0}, TWO, loops.dpmpp_2s_ancestral,
                             {"eta": 0.0}, loops.dpmpp_2s_ancestral_flow),
    "dpmpp-sde": ("dpmpp-sde", {}, TWO, loops.dpmpp_sde, {"eta": 1.0, "r": 0.5}, None),
    "dpmpp-sde-0.3": ("dpmpp-sde", {"eta": 0.7, "r": 0.3}, TWO, loops.dpmpp_sde,
                      {"eta": 0.7, "r": 0.3}, None),
    "res-2s": ("res-2s", {}, TWO, loops.seeds_2, {"eta": 0, "r": 0.5, "solver_type": "phi_2"},
               None),
    "res-2s-1": ("res-2s", {"c2": 1.0}, TWO, loops.seeds_2,
                 {"eta": 0, "r": 1.0, "solver_type": "phi_2"}, None),
    "seeds-2": ("seeds-2", {}, TWO, loops.seeds_2, {"eta": 1, "r": 0.5, "solver_type": "phi_1"},
                None),
    "seeds-2-phi-2": ("seeds-2", {"eta": 0.4, "r": 0.7, "solver_type": "phi_2"}, TWO, loops.seeds_2,
                      {"eta": 0.4, "r": 0.7, "solver_type": "phi_2"}, None),
    "seeds-3": ("seeds-3", {}, THREE, loops.seeds_3, {"eta": 1, "r_1": 1 / 3, "r_2": 2 / 3}, None),
    "seeds-3-0.4": ("seeds-3", {"eta": 0.4, "r_1": 0.2, "r_2": 0.9}, THREE, loops.seeds_3,
                    {"eta": 0.4, "r_1": 0.2, "r_2": 0.9}, None),
    "heunpp2": ("heunpp2", {}, THREE - 1, loops.heunpp2, {}, loops.heunpp2),
    "restart": ("restart", RESTART, TWO + 8, loops.restart,
                {"low": 0.06, "high": 0.4, "times": 2, "steps": 2}, None),
}  # fmt: skip


class Calls:
    """The model of a loop, and the normals of the row that a call or a pass without one is."""

    def __init__(self, problem, flow):
        self.problem, self.flow, self.row = problem, flow, -1

    def model(self, y, s):
        self.row += 1
        path = self.problem.path
        level = float(s if self.flow else path.level(s))
        return self.problem.denoise(y if self.flow else float(path.alpha(level)) * y, level)

    def noise(self, own_row=False):
        self.row += own_row
        return self.problem.normals[self.row, 0]


def table_and_grid(case, path, prediction, kind, to_data):
    solver, options, calls, *_ = CASES[case]
    grid = time_grid(path, LEVELS, kind, ratio_max=30.0, ratio_min=0.03)
    if solver == "heunpp2" and not to_data:
        calls -= 2
    table = ardiff.solver(
        solver, path=path, prediction=prediction, steps=calls + to_data, grid=grid,
        denoise_last=to_data, **options,
    )  # fmt: skip
    assert table.calls == calls + to_data
    return table, grid


def original(case, problem, grid, to_data):
    *_, loop, own, flow_loop = CASES[case]
    path, flow = problem.path, problem.path.name == "flow" and flow_loop is not None
    sigmas = [float(s) for s in (grid if flow else path.ratio(grid))]
    calls = Calls(problem, flow)
    x = path.init_scale(grid[0]) * problem.start
    y = x if flow else x / path.alpha(grid[0])
    ends = [0.0] if to_data else []
    y = (flow_loop if flow else loop)(calls.model, y, sigmas + ends, calls.noise, **own)
    return y if flow or to_data else y * path.alpha(grid[-1])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", CASES)
def test_equals_the_original(case, path):
    problem = Problem(path)
    for kind, to_data in (("log-snr", True), ("karras", False)):
        want = None
        for prediction in PREDICTIONS if to_data else ("flow",):
            table, grid = table_and_grid(case, path, prediction, kind, to_data)
            want = original(case, problem, grid, to_data) if want is None else want
            np.testing.assert_allclose(run_table(table, problem), want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_a_coefficient_changed_by_a_millionth_is_found(case):
    problem = Problem("vp-cosine")
    table, grid = table_and_grid(case, "vp-cosine", "v_prediction", "karras", True)
    want = original(case, problem, grid, True)
    row = len(table) // 2 - 1
    for column in np.flatnonzero(np.abs(table.coefficients[row]) > 1e-3):
        coefficients = table.coefficients.copy()
        coefficients[row, column] *= 1 + 1e-6
        changed = dataclasses.replace(table, coefficients=coefficients)
        assert np.abs(run_table(changed, problem) - want).max() > 1e-9, column


@pytest.mark.parametrize("solver", ["euler-ancestral", "dpmpp-2s-ancestral"])
@pytest.mark.parametrize("path", PATHS)
def test_noise_that_leaves_nothing_starts_from_the_data(path, solver):
    """eta so large that s_down is 0: x_b = alpha_b x0 + sigma_b n, a call a step."""
    grid = time_grid(path, 4, ratio_max=30.0, ratio_min=0.03)
    steps = 4 if solver == "euler-ancestral" else 7
    table = ardiff.solver(solver, path=path, prediction="sample", steps=steps, grid=grid, eta=50.0)
    alpha, sigma = table.alpha, table.sigma
    assert table.calls == 4 and not table.column("x_x").any()
    np.testing.assert_allclose(table.column("x_0")[:-1], alpha[1:], rtol=1e-12)
    np.testing.assert_allclose(table.column("x_n")[:-1], sigma[1:], rtol=1e-12)


FROM_NOISE = ["euler-ancestral", "dpmpp-2s-ancestral", "dpmpp-sde", "res-2s", "seeds-2", "seeds-3",
              "heunpp2", "lcm", "tcd"]  # fmt: skip


@pytest.mark.parametrize("solver", FROM_NOISE)
def test_a_flow_may_start_at_its_noise(solver):
    """sigma = 1, as every rectified-flow model is sampled; nearly the steps from 0.9999."""
    problem = Problem("flow")
    grid = np.array([1.0, 0.8, 0.6, 0.4, 0.2])
    options = {"path": "flow", "prediction": "flow", "denoise_last": True}
    for steps in range(1, 30):
        try:
            table = ardiff.solver(solver, grid=grid, steps=steps, **options)
            near = ardiff.solver(solver, grid=[0.9999, *grid[1:]], steps=steps, **options)
            break
        except ValueError as error:
            refused = error
    else:
        raise refused
    assert table.level[0] == 1
    assert np.abs(run_table(table, problem) - run_table(near, problem)).max() < 0.02


def test_dpmpp_2s_ancestral_at_sigma_1_is_comfyuis():
    problem, grid = Problem("flow"), np.array([1.0, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05])
    table = ardiff.solver("dpmpp-2s-ancestral", path="flow", prediction="flow", steps=13, grid=grid)
    want = original("dpmpp-2s-ancestral", problem, grid, True)
    np.testing.assert_allclose(run_table(table, problem), want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("path", PATHS)
def test_ancestral_euler_is_ddim_by_k_diffusions_law(path):
    """On ``flow`` its own law adds another share of noise, but for eta 0."""
    for eta in (0.0, 0.6):
        options = {"path": path, "prediction": "sample", "steps": 9, "eta": eta}
        ours = ardiff.solver("euler-ancestral", **options).coefficients
        ddim = ardiff.solver("ddim", **options).coefficients
        assert np.allclose(ours, ddim, rtol=1e-12, atol=1e-14) == (path != "flow" or eta == 0)


@pytest.mark.parametrize("path", PATHS)
def test_two_stages_without_noise_are_one_method(path):
    options = {"path": path, "prediction": "sample", "steps": 9}
    seeds = ardiff.solver("seeds-2", **options, eta=0.0, r=0.4, solver_type="phi_2").coefficients
    res = ardiff.solver("res-2s", **options, c2=0.4).coefficients
    np.testing.assert_allclose(seeds, res, rtol=1e-12, atol=1e-15)


def guided(path, x, level, condition):
    """A denoiser that moves with the condition, a number."""
    alpha, sigma = (float(f(float(level[0]))) for f in (path.alpha, path.sigma))
    scaled = alpha * x / (alpha**2 + sigma**2)
    return 0.7 * torch.tanh(2 * scaled + condition) + 0.2 * torch.sin(3 * scaled) * condition


# solver, options, loop, loop's options, loop on flow, calls of 7 levels and the data
CFG_PP = {
    "euler-cfg-pp": ("euler-ancestral", {"eta": 0.0}, loops.euler_ancestral_cfg_pp, {"eta": 0.0},
                     None, LEVELS),
    "euler-ancestral-cfg-pp": ("euler-ancestral", {"eta": 0.8}, loops.euler_ancestral_cfg_pp,
                               {"eta": 0.8}, None, LEVELS),
    "dpmpp-2m-cfg-pp": ("dpmpp-2m", {}, loops.dpmpp_2m_cfg_pp, {}, None, LEVELS),
    "res-multistep-cfg-pp": ("res-multistep", {}, loops.res_multistep_cfg_pp, {"eta": 0.0},
                             loops.res_multistep_cfg_pp, LEVELS),
    "res-multistep-ancestral-cfg-pp": ("res-multistep", {"eta": 0.7}, loops.res_multistep_cfg_pp,
                                       {"eta": 0.7}, None, LEVELS),
    "gradient-estimation-cfg-pp": ("gradient-estimation", {}, loops.gradient_estimation_cfg_pp,
                                   {"ge_gamma": 2.0}, loops.gradient_estimation_cfg_pp, LEVELS),
    "dpmpp-2s-ancestral-cfg-pp": ("dpmpp-2s-ancestral", {"eta": 0.8},
                                  loops.dpmpp_2s_ancestral_cfg_pp, {"eta": 0.8},
                                  loops.dpmpp_2s_ancestral_flow_cfg_pp, TWO + 1),
}  # fmt: skip


def cfg_pp_table(case, path, **more):
    solver, options, *_, steps = CFG_PP[case]
    grid = time_grid(path, LEVELS, "karras", ratio_max=30.0, ratio_min=0.03)
    options = options | {"path": path, "steps": steps, "grid": grid, "cfg_pp": True} | more
    return ardiff.solver(solver, **options), grid


def run_guided(table, x, noise, path, weight):
    def model(x, level, condition):
        return guided(path, x, level, condition)

    zero, ids = torch.zeros(1, dtype=torch.int64), torch.arange(len(x))
    return run(
        table, model, x, key=zero, stream=ids, noise=noise, condition=0.6, uncond=0.1,
        guidance=torch.tensor([weight]),
    )  # fmt: skip


# on flows res-multistep adds noise by a law of its own
COMPARED = [
    (case, path)
    for case in CFG_PP
    for path in PATHS
    if (case, path) != ("res-multistep-ancestral-cfg-pp", "flow")
]


@pytest.mark.parametrize(("case", "path"), COMPARED)
def test_cfg_pp_with_guidance_equals_the_original(case, path):
    *_, loop, own, flow_loop, _ = CFG_PP[case]
    table, grid = cfg_pp_table(case, path, prediction="sample")
    where, flow = Problem(path).path, path == "flow" and flow_loop is not None
    generator = torch.Generator().manual_seed(4)
    x = float(where.init_scale(grid[0])) * torch.randn(3, 5, generator=generator)
    noise, row = torch.randn(len(table), 3, 5, generator=generator), [-1]

    def model(y, s):
        row[0] += 1
        level = float(s if flow else where.level(s))
        x = torch.tensor(y if flow else float(where.alpha(level)) * y)
        at = torch.full((3,), level, dtype=torch.float64)
        c, u = (guided(where, x, at, condition).numpy() for condition in (0.6, 0.1))
        return u + 3 * (c - u), u

    sigmas = [float(s) for s in (grid if flow else where.ratio(grid))]
    y = x.double().numpy() / (1 if flow else float(where.alpha(grid[0])))
    normals = noise.double().numpy()
    want = (flow_loop if flow else loop)(model, y, [*sigmas, 0.0], lambda: normals[row[0]], **own)
    found = run_guided(table, x, noise, where, 3.0).double().numpy()
    scale = np.abs(want).max()
    assert np.abs(found - want).max() < 1e-5 * scale
    plain, _ = cfg_pp_table(case, path, prediction="sample", cfg_pp=False)
    other = run_guided(plain, x, noise, where, 3.0).double().numpy()
    assert np.abs(other - want).max() > 0.05 * scale  # the control: guidance without CFG++


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", CFG_PP)
def test_cfg_pp_without_guidance_is_the_plain_solver(case, path):
    """Where x0u is x0. Ancestral Euler's law on flows is k-diffusion's then, ddim's."""
    problem, solver = Problem(path), CFG_PP[case][0]
    for prediction in ("epsilon", "flow"):
        table, grid = cfg_pp_table(case, path, prediction=prediction)
        plain, _ = cfg_pp_table(case, path, prediction=prediction, cfg_pp=False)
        if solver == "euler-ancestral":
            options = CFG_PP[case][1] | {"path": path, "steps": LEVELS, "grid": grid}
            plain = ardiff.solver("ddim", prediction=prediction, **options)
        assert table.unconditional and not plain.unconditional
        found, want = run_table(table, problem), run_table(plain, problem)
        np.testing.assert_allclose(found, want, rtol=0, atol=1e-10)


BAD = {
    "eta must be finite and not negative, got -1": ("euler-ancestral", {"eta": -1}),
    "cfg_pp must be True or False, got 2": ("euler-ancestral", {"cfg_pp": 2}),
    "dpmpp-2m: cfg_pp must be True or False, got 'yes'": ("dpmpp-2m", {"cfg_pp": "yes"}),
    "dpmpp-2s-ancestral makes two model calls per step: it needs steps >= 3": (
        "dpmpp-2s-ancestral", {"steps": 2}),
    "dpmpp-sde: r must be between 0 and 1, got 1.0": ("dpmpp-sde", {"r": 1.0}),
    "res-2s: c2 must be above 0 and at most 1, got 0": ("res-2s", {"c2": 0}),
    "res-2s makes 2 model calls per step: it needs steps >= 3, got steps=2": (
        "res-2s", {"steps": 2}),
    "seeds-2: r must be above 0 and at most 1, got 1.5": ("seeds-2", {"r": 1.5}),
    "unknown solver_type 'phi'; known: phi_1, phi_2": ("seeds-2", {"solver_type": "phi"}),
    "seeds-3: needs 0 < r_1 < r_2 <= 1, got r_1=0.7": ("seeds-3", {"r_1": 0.7}),
    "tcd: gamma must be in [0, 1], got 1.5": ("tcd", {"gamma": 1.5}),
    "restart needs 0 < restart_min < restart_max": ("restart", {"restart_min": 3.0}),
    "restart: restarts must be an integer of 1 or more, got 0": ("restart", {"restarts": 0}),
    "does 2 steps over: it needs steps >= 7, got steps=6": ("restart", {"steps": 6}),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_what_they_refuse(message):
    solver, options = BAD[message]
    given = {"path": "edm", "prediction": "sample", "steps": 20} | options
    with pytest.raises(ValueError) as raised:
        ardiff.solver(solver, **given)
    assert message in str(raised.value)
