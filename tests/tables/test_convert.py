"""Tables for another prediction type or path, against those that a solver makes there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import ardiff
from ardiff.solvers import SOLVERS, solver_options
from ardiff.tables.diffusers_schedules import DiscretePath, beta_schedule, ddpm_table
from ardiff.tables.paths import PREDICTIONS
from ardiff.tables.table import COLUMNS
from tests._support.solver_problem import Problem, run_table

STABLE = DiscretePath(np.cumprod(1 - beta_schedule("scaled_linear", 1000, 0.00085, 0.012)))
GRID = {"ratio_max": 12.0, "ratio_min": 0.05}  # which every path covers


def make(solver, path, prediction="sample", **options):
    if "dim" in solver_options(solver):
        options["dim"] = 40
    return ardiff.solver(solver, path=path, prediction=prediction, steps=9, **GRID, **options)


def movable(solver):
    table = make(solver, "edm")
    whole = set(table.op) == {"diffusion"} and table.calls_model.all()
    return whole and not (table.column("m_x").any() or table.column("s_x").any())


MOVABLE = [solver for solver in SOLVERS if movable(solver)]
# Which step in coordinates of the path's own, or on levels of their own.
OWN = {"dpmpp-2s-ancestral", "euler-ancestral", "heunpp2", "learned", "res-multistep", "tcd"}
PAIRS = [("edm", "flow"), ("flow", "vp-linear"), ("vp-cosine", "ou"), ("ou", STABLE)]


def assert_same(found, expected):
    assert (found.path, found.prediction) == (expected.path, expected.prediction)
    assert (found.op, found.solver) == (expected.op, expected.solver)
    assert found.init_scale == pytest.approx(expected.init_scale, rel=1e-9)
    for name in ("level", "alpha", "sigma", "coefficients"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        scale = np.abs(theirs).max(0)
        assert np.all(np.abs(ours - theirs) <= 1e-7 * scale + 1e-12), name


def test_the_solvers_that_can_be_moved():
    assert {"ddim", "ddpm", "dpmpp-2m", "dpmpp-2m-sde", "unipc", "heun"} <= {*MOVABLE}


@pytest.mark.parametrize(
    "pair", PAIRS, ids=lambda pair: f"{pair[0]}-to-{getattr(pair[1], 'name', pair[1])}"
)
@pytest.mark.parametrize("solver", [solver for solver in MOVABLE if solver not in OWN])
def test_a_moved_table_is_the_one_made_there(solver, pair):
    here, there = pair
    found, expected = (
        make(solver, here).on(there, "v_prediction"),
        make(solver, there, "v_prediction"),
    )
    assert_same(found, expected)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_for_models_of_another_prediction(prediction):
    table = make("dpmpp-2m-sde", STABLE, "epsilon")
    assert_same(table.on(prediction=prediction), make("dpmpp-2m-sde", STABLE, prediction))
    same = table.on()
    np.testing.assert_allclose(same.coefficients, table.coefficients, rtol=1e-15)


@pytest.mark.parametrize("solver", MOVABLE)
def test_samples_are_the_same_on_every_path(solver):
    """A run on a nonlinear model, from the same y and with the same normals, ends at the same
    data."""
    table, ends = make(solver, "edm"), []
    for path, prediction in (("edm", "sample"), ("flow", "flow"), ("ou", "epsilon")):
        problem, moved = Problem(path), table.on(path, prediction)
        problem.denoise = lambda x, level, p=problem: _denoised(x / p.at(level)[0], p, level)
        problem.start = moved.alpha[0] * table.init_scale * problem.start / moved.init_scale
        ends.append(run_table(moved, problem))
    assert np.all(np.isfinite(ends))
    np.testing.assert_allclose(ends[1:], [ends[0]] * 2, rtol=0, atol=1e-8)


def _denoised(y, problem, level):
    alpha, sigma = problem.at(level)
    return 0.7 * np.tanh(2 * y / (1 + (sigma / alpha) ** 2)) + 0.2 * np.sin(y)


def test_a_third_memory_and_a_learned_variance_are_moved_too():
    """Of an edm table with random weights, each from the row on at which what it weighs is known,
    the moved table ends where the first does."""
    rng, rows = np.random.default_rng(0), 7
    base, names = make("ddim", "edm"), COLUMNS["diffusion"]
    columns = base.coefficients[:rows].copy()
    fixed = ("p_x", "p_o", "x_x_lo", "m_x", "m_x_lo", "s_x", "lv_min", "lv_max")
    free = [name for name in names if name not in fixed]
    for name in free:
        first = {"x_m": 1, "s_m": 1, "x_d": 2, "s_2": 2, "t_2": 2, "x_3": 3}.get(name, 0)
        columns[first:, names.index(name)] = rng.standard_normal(rows - first)
    parts = [names.index(n) for n in ("x_0", "x_m", "x_3", "x_u", "x_x")]
    columns[-1, parts[0]] += 1 - columns[-1, parts].sum()
    table = replace(
        base, coefficients=columns, level=base.level[:rows], op=base.op[:rows],
        calls_model=base.calls_model[:rows], alpha=base.alpha[:rows], sigma=base.sigma[:rows],
        saves_origin=None, midpoint=None, ball_margin=None,
    )  # fmt: skip
    assert table.memories == 3 and table.unconditional
    moved = table.on("flow", "flow")
    one, two = Problem("edm"), Problem("flow")
    one.denoise = lambda x, level: _denoised(x, one, level)
    two.denoise = lambda x, level: _denoised(x / two.at(level)[0], two, level)
    two.start = moved.alpha[0] * one.start * table.init_scale / moved.init_scale
    ends = [run_table(t, p) for t, p in ((table, one), (moved, two))]
    assert np.all(np.isfinite(ends))
    np.testing.assert_allclose(ends[1], ends[0], rtol=0, atol=1e-9 * np.abs(ends[0]).max())

    ddpm = ddpm_table(
        STABLE.alpha(np.arange(1000.0)) ** 2,
        [800, 400, 0],
        prediction="epsilon",
        variance="learned_range",
    )
    alpha = STABLE.alpha(ddpm.level)
    ddpm = replace(ddpm, alpha=alpha, sigma=STABLE.sigma(ddpm.level))
    moved = ddpm.on("edm", "epsilon")
    after = np.append(1 / alpha[1:], 1.0)
    for name in ("lv_min", "lv_max"):
        np.testing.assert_allclose(
            np.exp(moved.column(name) / 2), np.exp(ddpm.column(name) / 2) * after
        )


def anchored():
    """A table whose memory holds a state."""
    columns = make("ddim", "flow").coefficients.copy()
    columns[0, COLUMNS["diffusion"].index("m_x")] = 1.0
    return replace(make("ddim", "flow"), coefficients=columns)


def from_noise():
    return ardiff.solver("ddim", path="flow", prediction="flow", steps=3, grid="simple")


def wide():
    return ardiff.solver("ddim", path="edm", prediction="sample", steps=3)


ERRORS = {
    "velocity": (
        lambda: make("rtk-uld", "flow").on(prediction="sample"),
        "a table of diffusion rows alone",
    ),
    "states in memory": (lambda: anchored().on("edm"), "its memory holds states"),
    "alpha 0": (lambda: from_noise().on("edm"), "it begins at alpha = 0"),
    "an end before the data": (
        lambda: make("ddim", "flow", denoise_last=False).on("edm"),
        "not at the data; make it with denoise_last=True",
    ),
    "levels past the path": (lambda: wide().on(STABLE), "ratio must be in"),
    "other p_x": (
        lambda: replace(make("ddim", "flow"), prediction="flow").on("edm"),
        "its p_x and p_o are not",
    ),
    "a model of another prediction": (
        lambda: make("ddim", "flow").check_model("flow", "flow"),
        "table.on(path, prediction)",
    ),
    "a model on another path": (
        lambda: make("ddim", "flow").check_model("ou", "sample"),
        "is for a sample model on path flow",
    ),
    "a model without such levels": (
        lambda: make("ddim", "edm").check_model("flow", "sample"),
        "model is sample on path flow",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_why(case):
    call, message = ERRORS[case]
    with pytest.raises(ValueError) as refusal:
        call()
    assert message in str(refusal.value)


def test_a_table_fits_its_own_model():
    make("rtk-uld", "flow", "flow").check_model("flow", "flow")
    other = DiscretePath(np.cumprod(1 - beta_schedule("linear", 1000, 0.0001, 0.02)))
    make("ddim", STABLE).check_model(STABLE, "sample")
    with pytest.raises(ValueError, match="is for a sample model on path discrete"):
        make("ddim", STABLE).check_model(other, "sample")
