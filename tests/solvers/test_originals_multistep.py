"""Multistep solvers against the samplers they are named after: whole runs, on the same noise.

Originals: the schedulers of diffusers (run, their sigmas replaced by these levels in float64), and
the samplers of k-diffusion and ComfyUI, as loops in `tests/_support/multistep_originals.py`. A run
is compared twice: in float64 by the reference of the ops, which must agree to 1e-9 of the state's
scale (to 1e-7 where the original computes in float32), and in float32 by `ardiff.loop.run.run`, to
1e-5. A control takes one weight off by a thousandth. Every case has two grids and two predictions;
the cases take turns in these.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

import ardiff
from ardiff.loop.run import run
from ardiff.tables.paths import PREDICTIONS, get_path, output_from_data, time_grid
from tests._support import multistep_originals as originals
from tests._support.solver_problem import Problem, Rows, run_table

diffusers = pytest.importorskip("diffusers")

CALLS = 8
GRIDS = ("log-snr", "karras")


def levels_of(path, grid, calls=CALLS):
    return time_grid(path, calls, grid, ratio_max=12.0, ratio_min=0.03)


def kinds(case):
    """(prediction, grid, whether the run ends at the data) of each run of a case."""
    names = PREDICTIONS[case % 5], PREDICTIONS[(case + 2) % 5]
    return zip(names, GRIDS, (True, False), strict=True)


def check(table, problem, want, tolerance=1e-9):
    scale = np.abs(want).max()
    assert np.abs(run_table(table, problem) - want).max() < tolerance * scale

    def model(x, level, _):
        return problem.output(table.prediction, x.double(), float(level[0])).float()

    x = torch.tensor(table.init_scale * problem.start, dtype=torch.float32)[None]
    noise = torch.tensor(problem.normals[: len(table), :1], dtype=torch.float32)
    key, stream = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    found = run(table, model, x, key=key, stream=stream, noise=noise)[0].double().numpy()
    assert np.abs(found - want).max() < 1e-5 * scale

    wrong = table.coefficients.copy()
    column = 5 if wrong[len(wrong) // 2, 5] else 4  # x_m, or x_0 where there is no memory
    wrong[len(wrong) // 2, column] *= 1 + 1e-3
    wrong = dataclasses.replace(table, coefficients=wrong)
    assert np.abs(run_table(wrong, problem) - want).max() > 3 * tolerance * scale


ORDERS = [(order, variant) for order in (1, 2, 3) for variant in ("bh1", "bh2")]


def case_id(name, options):
    return "-".join([name, *map(str, options.values())])


LOOPS = [
    ("euler", originals.euler, {}),
    *(("lms", originals.lms, {"order": order}) for order in (1, 2, 3, 4)),
    *(("ipndm", originals.ipndm, {"order": order}) for order in (1, 2, 3, 4)),
    ("gradient-estimation", originals.gradient_estimation, {}),
    ("gradient-estimation", originals.gradient_estimation, {"ge_gamma": 1.5}),
    *(("dpmpp-3m-sde", originals.dpmpp_3m_sde, {"eta": eta}) for eta in (0.0, 0.5, 1.0)),
    ("res-multistep", originals.res_multistep, {}),
    ("res-multistep", originals.res_multistep, {"eta": 0.6}),
    ("res-multistep", originals.res_multistep, {"eta": 1.5}),
    *(("er-sde", originals.er_sde, {"order": order}) for order in (1, 2, 3)),
    *(
        ("sa", originals.sa, {"predictor_order": p, "corrector_order": c})
        for p, c in ((1, 1), (2, 2), (3, 0), (3, 3), (3, 4), (1, 4))
    ),
    *(("deis", originals.deis_tab, {"order": order}) for order in (1, 2, 3)),
]
SA = {"simple_order_2": False, "tau_start": math.inf, "tau_end": 0, "lower_order_final": False}
EXTRA = {"sa": SA, "deis": {"interpolation": "vp-time"}}


@pytest.mark.parametrize("path", ["vp-linear", "edm", "flow"])
@pytest.mark.parametrize("case", range(len(LOOPS)), ids=[case_id(n, o) for n, _, o in LOOPS])
def test_equals_k_diffusion_and_comfyui(case, path):
    name, loop, options = LOOPS[case]
    if path == "flow" and options.get("eta") and name == "res-multistep":
        pytest.skip("the noise that ComfyUI's sampler adds is not that of a flow")
    problem = Problem(path)
    for prediction, grid, to_data in kinds(case):
        levels = levels_of(path, grid)
        ends = to_data and name != "sa"  # whose loop has no step to sigma 0
        x = problem.path.init_scale(levels[0]) * problem.start
        normals = Rows(problem.normals)
        want = originals.on_levels(loop, problem, x, levels, normals, to_data=ends, **options)
        table = ardiff.solver(
            name, path=path, prediction=prediction, steps=CALLS - (not ends), grid=levels,
            denoise_last=ends, **options, **EXTRA.get(name, {}),
        )  # fmt: skip
        check(table, problem, want)


class Scheduler:
    """A scheduler of diffusers on given levels, with injected noise, in float64."""

    def __init__(self, kind, path, levels, to_data, prediction, **config):
        flow = {"use_flow_sigmas": True} if path.name == "flow" else {}
        theirs = prediction if prediction in ("epsilon", "sample", "v_prediction") else "sample"
        if flow:
            theirs = "flow_prediction"
        self.prediction = "flow" if flow else theirs
        if kind == "DPMSolverMultistepScheduler":  # or the last step would be of first order
            config["final_sigmas_type"] = "zero" if to_data else "sigma_min"
        self.made = getattr(diffusers, kind)(prediction_type=theirs, **flow, **config)
        self.made.set_timesteps(len(levels) if to_data else len(levels) - 1)
        values = path.sigma(levels) if flow else path.ratio(levels)
        values = np.append(values, 0.0) if to_data else values
        self.made.sigmas = torch.tensor(values)
        count = len(values) - 1
        self.made.timesteps = torch.arange(count, 0, -1.0)  # names alone
        self.made.is_scale_input_called = True
        self.path, self.levels = path, levels

    def run(self, problem, x, scale):
        """From x, whose state is x over `scale(level)`."""
        x = torch.tensor(x)[None]
        for i, t in enumerate(self.made.timesteps):
            level = self.levels[i]
            x0 = torch.tensor(problem.denoise(x.numpy(), level))
            out = output_from_data(self.prediction, *problem.at(level), x, x0)
            x = self.made.step(out, t, x / scale(level)).prev_sample
            if i + 1 < len(self.levels):
                x = x * scale(self.levels[i + 1])
        return x[0].numpy()


SA_WINDOW = {"tau": 0.8, "tau_start": 5.0, "tau_end": 0.1}
SCHEDULERS = [
    *(
        (
            "UniPCMultistepScheduler", {"solver_order": order, "solver_type": variant},
            "unipc", {"order": order, "variant": variant},
        )
        for order, variant in ORDERS
    ),
    *(
        (
            "DPMSolverMultistepScheduler", {"solver_order": 3, "solver_type": kind},
            "dpmpp-3m", {"solver_type": kind},
        )
        for kind in ("midpoint", "heun")
    ),
    *(
        ("DEISMultistepScheduler", {"solver_order": order}, "deis", {"order": order})
        for order in (1, 2, 3)
    ),
    *(
        (
            "SASolverScheduler", {"predictor_order": p, "corrector_order": c},
            "sa", {"predictor_order": p, "corrector_order": c, **SA_WINDOW, **tau},
        )
        for p, c, tau in (
            (1, 1, {}), (2, 2, {}), (3, 3, {}), (3, 4, {}), (2, 3, {}), (3, 3, {"tau": 0.0}),
            (3, 2, {"tau_start": math.inf, "tau_end": 0}),
        )
    ),
    ("LMSDiscreteScheduler", {}, "lms", {"order": 4}),
    ("EulerDiscreteScheduler", {}, "euler", {}),
]  # fmt: skip


@pytest.mark.parametrize("path", ["vp-linear", "flow"])
@pytest.mark.parametrize(
    "case", range(len(SCHEDULERS)), ids=[case_id(n, o) for _, _, n, o in SCHEDULERS]
)
def test_equals_diffusers(case, path, monkeypatch):
    kind, config, name, options = SCHEDULERS[case]
    of_ratio = name in ("lms", "euler")  # their state is x / alpha
    if path == "flow" and of_ratio:
        pytest.skip("this scheduler knows no flow")
    problem, where = Problem(path), get_path(path)
    for prediction, grid, to_data in kinds(case):
        levels = levels_of(path, grid)
        # the other schedulers take the log of 0 on a step to sigma 0
        ends = to_data and (of_ratio or name == "dpmpp-3m" or options.get("variant") == "bh2")
        own = {} if of_ratio else {"lower_order_final": bool(ends or case % 2)}
        made = Scheduler(kind, where, levels, ends, prediction, **config, **own)
        scale = (lambda level: problem.at(level)[0]) if of_ratio else (lambda level: 1.0)
        if name == "sa":
            inject(monkeypatch, made, problem, **{key: options[key] for key in SA_WINDOW})
        x = where.init_scale(levels[0]) * problem.start
        want = made.run(problem, x, scale)
        table = ardiff.solver(
            name, path=path, prediction=prediction, steps=CALLS - (not ends), grid=levels,
            denoise_last=ends, **options, **own,
        )  # fmt: skip
        check(table, problem, want, 1e-7 if name in ("dpmpp-3m", "euler") else 1e-9)


def inject(monkeypatch, scheduler, problem, tau, tau_start, tau_end):
    """The tau of SA-Solver's scheduler by sigma / alpha, and its noise."""
    normals, count = iter(problem.normals[:, 0]), len(scheduler.made.timesteps)

    def tau_of(timestep):
        ratio = scheduler.path.ratio(scheduler.levels[count - int(timestep)])
        return tau if tau_end <= ratio <= tau_start else 0.0

    scheduler.made.tau_func = lambda t: torch.tensor(tau_of(t), dtype=torch.float64)
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_sasolver.randn_tensor",
        lambda *given, **options: torch.tensor(next(normals))[None],
    )


def test_unipc_of_few_and_of_many_calls():
    """By default the order falls at the end where a data prediction follows, and only there."""
    for path in ("edm", "flow"):
        options = {"path": path, "prediction": "sample", "order": 3}
        for steps in (4, 20):
            for last in (True, False):
                chosen = ardiff.solver("unipc", steps=steps, denoise_last=last, **options)
                same = ardiff.solver(
                    "unipc", steps=steps, denoise_last=last, lower_order_final=last, **options
                )
                assert np.array_equal(chosen.coefficients, same.coefficients)
        assert chosen.memories == 3


def test_a_start_without_data():
    """At alpha = 0, an infinite sigma / alpha, the prediction is no node of any polynomial."""
    levels = np.array([1.0, 0.9, 0.7, 0.4, 0.2, 0.05])
    names = (
        "euler unipc dpmpp-3m dpmpp-3m-sde deis ipndm lms res-multistep sa er-sde "
        "gradient-estimation"
    ).split()
    limit = levels.copy()
    limit[0] = 1 - 1e-9
    for name in names:
        options = {"path": "flow", "prediction": "flow", "steps": 6}
        found, near = (
            ardiff.solver(name, grid=grid, **options).coefficients for grid in (levels, limit)
        )
        # in log(alpha / sigma) the last digits of h go slowly: 1 / h is 0.05
        loose = name in ("unipc", "sa", "dpmpp-3m", "dpmpp-3m-sde", "deis")
        np.testing.assert_allclose(found, near, rtol=0, atol=0.3 if loose else 1e-6, err_msg=name)


REFUSED = [
    ("unipc", {"order": 4}, "unipc: order must be an integer from 1 to 3, got 4"),
    ("unipc", {"order": True}, "unipc: order must be an integer from 1 to 3, got True"),
    ("unipc", {"variant": "bh3"}, "unknown variant 'bh3' of unipc; known: bh1, bh2"),
    ("unipc", {"lower_order_final": 0.5}, "unipc: lower_order_final must be True or False"),
    ("unipc-2", {}, "unknown solver 'unipc-2': it is 'unipc' now"),
    ("lms", {"order": 5}, "lms: order must be an integer from 1 to 4, got 5"),
    ("ipndm", {"order": 0}, "ipndm: order must be an integer from 1 to 4, got 0"),
    ("deis", {"order": 2.0}, "deis: order must be an integer from 1 to 3, got 2.0"),
    ("deis", {"interpolation": "x"}, "unknown interpolation 'x' of deis; known: log, vp-time"),
    ("dpmpp-3m", {"solver_type": "x"}, "unknown solver_type 'x'; known: midpoint, heun"),
    ("dpmpp-3m-sde", {"eta": -1.0}, "dpmpp-3m-sde: eta must be finite and not negative, got -1.0"),
    ("res-multistep", {"eta": math.inf}, "res-multistep: eta must be finite and not negative"),
    ("gradient-estimation", {"ge_gamma": math.nan}, "ge_gamma must be finite, got nan"),
    ("er-sde", {"order": 4}, "er-sde: order must be an integer from 1 to 3, got 4"),
    ("sa", {"predictor_order": 4}, "sa: predictor_order must be an integer from 1 to 3, got 4"),
    ("sa", {"corrector_order": 5}, "sa: corrector_order must be an integer from 0 to 4, got 5"),
    ("sa", {"tau": -1.0}, "sa: tau must be finite and not negative, got -1.0"),
    ("sa", {"tau_start": 1.0, "tau_end": 2.0}, "0 <= tau_end <= tau_start, got tau_start=1.0"),
]


@pytest.mark.parametrize(("name", "options", "message"), REFUSED)
def test_bad_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        ardiff.solver(name, path="edm", prediction="sample", steps=6, **options)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_equals_diffusers(eta):
    path, made = get_path("vp-linear"), diffusers.DDIMScheduler(
        prediction_type="sample", clip_sample=False, timestep_spacing="trailing"
    )  # fmt: skip
    made.set_timesteps(CALLS)
    levels = made.timesteps.double().numpy()
    made.alphas_cumprod = torch.tensor(path.alpha(np.arange(1000.0)) ** 2)
    made.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    problem = Problem("vp-linear")
    x = torch.tensor(problem.start)[None]
    for i, t in enumerate(made.timesteps):
        noise = torch.tensor(problem.normals[i, :1])
        out = torch.tensor(problem.denoise(x.numpy(), levels[i]))
        x = made.step(out, t, x, eta=eta, variance_noise=noise).prev_sample
    for prediction in PREDICTIONS:
        table = ardiff.solver(
            "ddim", path=path, prediction=prediction, steps=CALLS, grid=levels, eta=eta
        )
        check(table, problem, x[0].numpy())
