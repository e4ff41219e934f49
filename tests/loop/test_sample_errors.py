"""Invalid calls of solver, sample, run, paths and tables: each says what was wrong and expected."""
# ruff: noqa: E501  (a case a line)

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import ardiff
from ardiff.data.mixture import GaussianMixture
from ardiff.loop.run import run
from ardiff.noise import make_key, make_stream
from ardiff.tables.paths import (
    VPPath,
    data_coefficients,
    get_path,
    score_coefficients,
    time_grid,
    transition,
)
from ardiff.tables.table import StepTable

KINETIC = {"path": "ou", "prediction": "score", "steps": 32}


def zeros(x, level, condition):
    return torch.zeros_like(x)


def solver(name="rtk-uld", **changes):
    return lambda: ardiff.solver(name, **{**KINETIC, **changes})


def sample(model=zeros, shape=(2, 3), **changes):
    options = {"path": "ou", "prediction": "score", "solver": "ddpm", "steps": 4, **changes}
    return lambda: ardiff.sample(model, shape, **options)


def table(**changes):
    fields = {
        "coefficients": np.zeros((2, 20)),
        "level": np.ones(2),
        "calls_model": np.ones(2, dtype=bool),
        "op": ("uld", "diffusion"),
        "init_scale": 1.0,
        "path": "ou",
        "prediction": "score",
        "solver": "mine",
    }
    return lambda: StepTable(**{**fields, **changes})


def with_value(row, column, value):
    coefficients = np.zeros((2, 20))
    coefficients[row, column] = value
    return coefficients


def returns(value):
    return lambda x, level, condition: value(x)


INVALID = [
    # solver
    ("solver name", solver("rtk-ludwig"), ValueError, "unknown solver 'rtk-ludwig'; known solvers: ddim, ddpm"),
    ("path name", solver(path="vp"), ValueError, "unknown path 'vp'; known paths: ou, vp-linear, vp-cosine, edm, flow"),
    ("path type", solver(path=3), TypeError, "path must be a name or an ardiff.tables.paths.Path, got int"),
    ("prediction name", solver(prediction="eps"), ValueError, "unknown prediction 'eps'; known predictions: score, epsilon"),
    ("grid name", solver(grid="cosine"), ValueError, "unknown time grid 'cosine'; known grids: log-snr, uniform, karras"),
    ("steps 0", solver(steps=0), ValueError, "steps must be an integer of 1 or more, got 0"),
    ("steps float", solver(steps=8.0), ValueError, "steps must be an integer of 1 or more, got 8.0"),
    ("too few steps for two stages", solver(steps=6), ValueError, "needs two stages or more: with inner=2 and a start ancestral that is steps >= 7, got steps=6"),
    ("one stage", solver(stages=1), ValueError, "rtk-uld needs two stages or more, got stages=1"),
    ("no inner step", solver(stages=20), ValueError, "no room for an inner step in steps=32 calls; it needs steps >= 41"),
    ("too many calls", solver(stages=20, inner=3), ValueError, "makes 81 model calls, more than steps=32"),
    ("inner 0", solver(inner=0), ValueError, "inner must be an integer of 1 or more, got 0"),
    ("stages fraction", solver(stages=2.5), ValueError, "stages must be an integer of 1 or more, got 2.5"),
    ("gamma sign", solver(gamma=-1.0), ValueError, "rtk-uld: gamma must be positive and finite, got -1.0"),
    ("tau NaN", solver("rtk-baoab", tau=float("nan")), ValueError, "rtk-baoab: tau must be positive and finite, got nan"),
    ("tau bool", solver(tau=True), ValueError, "rtk-uld: tau must be positive and finite, got True"),
    ("tau name", solver(tau="small"), ValueError, "rtk-uld: tau must be positive and finite, got 'small'"),
    ("tau list", solver(tau=[0.1, 0.2]), TypeError, "tau must be a number or a name, got list"),
    ("grid number", solver(grid=7), TypeError, "grid must be a name or a sequence of levels, got 7"),
    ("warm start", solver(warm_start="cold"), ValueError, "unknown warm_start 'cold'; known: ancestral, gaussian-factor"),
    ("gamma of ula", solver("rtk-ula", gamma=2.0), ValueError, "solver rtk-ula does not take the option 'gamma'; it takes: stages, inner, tau, warm_start"),
    ("stages of ddpm", solver("ddpm", stages=4), ValueError, "solver ddpm does not take the option 'stages'; it takes: none of its own"),
    ("misspelt option", solver(gama=2.0), ValueError, "does not take the option 'gama'"),
    ("epsilon at alpha 0", solver("ddpm", path="flow", prediction="epsilon", grid=[1.0, 0.5], steps=2), ValueError, "epsilon prediction says nothing about the data at alpha = 0"),
    ("ddpm-ei at alpha 0", solver("ddpm-ei", path="flow", prediction="sample", grid=[1.0, 0.5], steps=2), ValueError, "ddpm-ei cannot start at alpha = 0"),
    ("factor at alpha 0", solver(path="flow", prediction="sample", grid=[1.0, 0.5, 0.1], steps=5, warm_start="gaussian-factor"), ValueError, "does not exist at alpha = 0; use warm_start='ancestral'"),
    ("grid length", solver("ddim", grid=[1.0, 0.5], steps=3), ValueError, "ddim with steps=3 needs 3 levels, the grid has 2"),
    ("grid order", solver("ddim", grid=[0.5, 1.0], steps=2), ValueError, "a step must go to a cleaner level, got from level 0.5 to 1"),
    ("grid ends", solver(ratio_min=50.0), ValueError, "needs 0 < ratio_min < ratio_max"),
    # sample
    ("model type", sample(model=3), TypeError, "model_fn must be callable or have hoist, got int"),
    ("shape number", sample(shape=5), TypeError, "shape must be a sequence of integers (B, ...), got 5"),
    ("shape fraction", sample(shape=(2.5, 3)), TypeError, "shape must be a sequence of integers (B, ...), got (2.5, 3)"),
    ("shape flat", sample(shape=(5,)), ValueError, "shape must be (B, ...) with B >= 0 and sizes >= 1 after, got (5,)"),
    ("shape negative", sample(shape=(-1, 2)), ValueError, "shape must be (B, ...) with B >= 0"),
    ("shape empty", sample(shape=(2, 0)), ValueError, "sizes >= 1 after, got (2, 0)"),
    ("two arguments", sample(lambda x, level: x), TypeError, "model_fn is called as model_fn(x, level, condition), which the one given, with the signature (x, level), does not take"),
    ("a module of one argument", sample(torch.nn.Linear(3, 3)), TypeError, "model_fn is called as model_fn(x, level, condition)"),
    ("energy of two arguments", sample(solver="rtk-mala", steps=7, accept="energy", energy_fn=lambda x, level: x), TypeError, "energy_fn is called as energy_fn(x, level, condition)"),
    ("nothing to run", sample(solver=None, steps=None), TypeError, "sample needs steps, or a table"),
    ("table and solver", lambda: ardiff.sample(zeros, (2, 3), solver="ddpm", table=ardiff.solver("ddpm", **KINETIC)), TypeError, "a table fixes the solver: do not pass solver beside it"),
    ("table type", lambda: ardiff.sample(zeros, (2, 3), table=8), TypeError, "table must be a StepTable, a RaggedTable or the name of a table file, got int"),
    ("table name", lambda: ardiff.sample(zeros, (2, 3), table="ddpm"), FileNotFoundError, "no such table file (the name of a solver goes to solver=): 'ddpm'"),
    ("seed range", sample(seed=2**63), ValueError, "seed must fit in int64, got 9223372036854775808"),
    ("seed type", sample(seed=0.5), TypeError, "seed must be an integer or None, got float"),
    ("negative id", sample(sample_ids=[0, -1]), ValueError, "sample_ids must be in [0, 2^43), got -1"),
    ("large id", sample(sample_ids=[0, 2**43]), ValueError, "sample_ids must be in [0, 2^43), got 8796093022208"),
    ("huge id", sample(sample_ids=[0, 2**70]), ValueError, "sample_ids must be integers in [0, 2^43)"),
    ("too few ids", sample(sample_ids=[0]), ValueError, "sample_ids must be 2 integers, one per sample, got shape [1]"),
    ("float ids", sample(sample_ids=[0.0, 1.0]), ValueError, "sample_ids must be integers, got float32"),
    ("patch", sample(patch=2**20), ValueError, "patch must be in [0, 1048576), got 1048576"),
    ("guidance alone", sample(guidance=2.0), ValueError, "guidance and uncond go together"),
    ("guidance shape", sample(guidance=torch.ones(3), uncond=0), ValueError, "guidance must be a number or have shape [2], got [3]"),
    ("guidance inf", sample(guidance=float("inf"), uncond=0), ValueError, "guidance must be finite, got inf"),
    ("temperature", sample(temperature=-0.5), ValueError, "temperature must be finite and at least 0, got -0.5"),
    ("temperature name", sample(temperature="low"), TypeError, "temperature must be a number or have shape [2], got 'low'"),
    ("bfloat16 velocity", sample(solver="rtk-uld", steps=9, dtype=torch.bfloat16), ValueError, "got torch.bfloat16 for rtk-uld"),
    ("float64 state", sample(dtype=torch.float64), ValueError, "dtype must be float32"),
    ("output type", sample(returns(lambda x: 1.0)), TypeError, "the model must return a tensor, got float"),
    ("output shape", sample(returns(lambda x: x[:, :2])), ValueError, "the model must return the shape of its input [2, 3], got [2, 2]"),
    ("output dtype", sample(returns(lambda x: x.double())), ValueError, "the model must return float32, float16 or bfloat16, got float64"),
    ("output device", sample(returns(lambda x: x.to("meta"))), ValueError, "the model returned a tensor on meta, the state is on cpu"),
    # paths
    ("level range", lambda: get_path("vp-linear").alpha([3.0, 1000.0]), ValueError, "path vp-linear: level (timestep) must be in [0, 999], got 1000"),
    ("level NaN", lambda: get_path("flow").sigma(float("nan")), ValueError, "path flow: level (t) must be in [0, 1], got nan"),
    ("ratio range", lambda: get_path("vp-cosine").level(1e-6), ValueError, "path vp-cosine: ratio must be in [0.00642541, 20291.2], got 1e-06"),
    ("betas", lambda: VPPath("mine", [0.1, 1.0]), ValueError, "two or more numbers strictly in (0, 1)"),
    ("grid size", lambda: time_grid("ou", 0), ValueError, "a time grid needs one level or more, got n = 0"),
    ("infinite grid", lambda: time_grid("flow", 4, ratio_max=np.inf), ValueError, "a log-snr time grid needs a finite ratio_max, got inf"),
    ("score at alpha 0", lambda: data_coefficients("score", 0.0, 1.0), ValueError, "score prediction says nothing about the data at alpha = 0"),
    ("score at sigma 0", lambda: score_coefficients("sample", 1.0, 0.0), ValueError, "the score of a sample model is not defined at sigma = 0"),
    ("no step", lambda: transition("ou", 1.0, 1.0), ValueError, "a step must go to a cleaner level, got from level 1 to 1"),
    # tables
    ("table width", table(coefficients=np.zeros((2, 15))), ValueError, "needs coefficients [T, 20] with T >= 1, got shape [2, 15]"),
    ("table rows", table(level=np.ones(3)), ValueError, "a StepTable of 2 rows needs 2 levels, calls_model and ops, got [3], [2] and 2"),
    ("table op", table(op=("uld", "mala")), ValueError, "unknown op 'mala' in a StepTable; known: diffusion, uld, accept"),
    ("table NaN", table(coefficients=with_value(1, 7, np.nan)), ValueError, "StepTable row 1, column x_n is nan: coefficients must be finite in float32"),
    ("table overflow", table(coefficients=with_value(0, 4, 1e39)), ValueError, "StepTable row 0, column z_o is 1e+39"),
    ("table level", table(level=np.array([1.0, np.inf])), ValueError, "StepTable row 1 has no level"),
    ("table scale", table(init_scale=0.0), ValueError, "init_scale must be positive and finite, got 0.0"),
    ("table prediction", table(prediction="noise"), ValueError, "unknown prediction 'noise'"),
    ("table column", lambda: table()().column("q"), ValueError, "unknown column 'q'; known: p_x, p_o"),
    # mixture
    ("means", lambda: GaussianMixture(torch.zeros(3), 1.0), ValueError, "means must be [K, d], got shape [3]"),
    ("variances", lambda: GaussianMixture(torch.zeros(3, 2), torch.ones(4, 2)), ValueError, "variances must be [3, 2], [3, 1] or a number, got shape [4, 2]"),
    ("weights", lambda: GaussianMixture(torch.zeros(3, 2), 1.0, torch.ones(2)), ValueError, "weights must be [3], got shape [2]"),
    ("variance sign", lambda: GaussianMixture(torch.zeros(3, 2), -1.0), ValueError, "weights and variances must be positive"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "error", "message"), [c[1:] for c in INVALID], ids=[c[0] for c in INVALID]
)
def test_invalid_call(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_arguments_are_checked_before_any_model_call():
    calls = []

    def model(x, level, condition):
        calls.append(1)
        return x

    for changes in ({"sample_ids": [0, -1]}, {"seed": 2**63}, {"temperature": -1.0}, {"steps": 0}):
        with pytest.raises(ValueError):
            sample(model, **changes)()
    assert not calls


def test_run_reports_a_state_that_does_not_fit():
    step = ardiff.solver("ddpm", **KINETIC)
    key, stream = make_key(0, "cpu"), make_stream(None, 3, 0, "cpu")
    with pytest.raises(RuntimeError, match="stream must be"):
        run(step, zeros, torch.zeros(2, 4), key=key, stream=stream)
