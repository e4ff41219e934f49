"""Learned tables: better than their start on held-out points, or the start itself."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

import ardiff
from ardiff.data.mixture import GaussianMixture
from ardiff.loop.run import run
from ardiff.noise import initial_state, make_key, make_stream
from ardiff.tables.paths import PATHS
from ardiff.tables.ratio_rows import from_table, to_table
from ardiff.tables.table_family import Family
from ardiff.training import table_fit
from ardiff.training.learn_table import Model, learn_table
from ardiff_kernels import backend

ONE = GaussianMixture([[-1.0], [1.0]], 0.04)
TWO = GaussianMixture([[-1.0, 0.2], [0.6, 0.6], [0.4, -0.9]], 0.01)
CHEAP = {"teacher_steps": 40, "batches": 1}
learn = functools.partial(
    learn_table, path="flow", prediction="flow", steps=4, iterations=4, **CHEAP
)


@functools.cache
def found():
    return learn(ONE.model("flow", "flow"), (32, 1))


def endpoint_error(table, model, ids, exact_steps: int = 100) -> float:
    """Geometric mean distance of the product's samples to those of DPM-Solver++(2M) on a fine
    grid from the same starting points, on `edm`."""
    key, stream = make_key(3, "cpu"), make_stream(list(ids), len(ids), 0, "cpu")
    fine = ardiff.solver(
        "dpmpp-2m", path="edm", prediction="sample", steps=exact_steps, ratio_min=0.001
    )
    x = initial_state(fine, key, stream, 2)
    ends = [run(t, model, x, key=key, stream=stream) for t in (fine, table)]
    return float((ends[0] - ends[1]).square().sum(1).log().mean().exp().sqrt())


def test_a_learned_table_beats_its_start_where_neither_was_seen():
    """In the product's own loop, on ids that the fit has not had, by an independent exact ODE."""
    model = TWO.model("edm", "sample")
    made = learn_table(
        model, (64, 2), path="edm", prediction="sample", steps=6, iterations=12,
        teacher_steps=60, batches=1,
    )  # fmt: skip
    assert made.learned and made.table.calls == 6
    assert made.error < 0.3 * made.start_error
    assert made.others[made.start] == made.start_error
    ids = range(200)
    learned = endpoint_error(made.table, model, ids)
    for name in ("dpmpp-2m", "unipc"):
        for grid in ({}, {"ratio_min": 0.02}, {"grid": "karras"}):
            table = ardiff.solver(name, path="edm", prediction="sample", steps=6, **grid)
            assert learned < 0.5 * endpoint_error(table, model, ids), (name, grid)


def test_a_loss_of_the_wrong_sign_learns_nothing(monkeypatch):
    """The control: the fit that climbs ends with the start."""
    right = table_fit._normal_equations

    def wrong(*args):
        matrix, slope, value = right(*args)
        return matrix, -slope, value

    monkeypatch.setattr(table_fit, "_normal_equations", wrong)
    made = learn(ONE.model("flow", "flow"), (32, 1))
    assert not made.learned and made.error == made.start_error


def test_the_start_is_returned_where_every_table_is_exact():
    """Data at one point: D is the point, and every table ends there."""

    def point(x, level, condition):
        return torch.full_like(x, 0.5)

    start = ardiff.solver("dpmpp-2m", path="edm", prediction="sample", steps=4)
    made = learn_table(
        point,
        (16, 3),
        path="edm",
        prediction="sample",
        steps=4,
        iterations=3,
        start=start,
        **CHEAP,
    )
    assert not made.learned and made.table is start and made.start == "start"
    assert "no gain was found" in str(made)


def test_a_given_start_is_kept_to():
    start = ardiff.solver("ddim", path="flow", prediction="flow", steps=4, ratio_max=20.0)
    made = learn(ONE.model("flow", "flow"), (32, 1), start=start)
    assert made.learned and made.start == "start" and made.others["start"] == made.start_error
    assert made.rows[0, 0] == pytest.approx(20.0)
    assert all(name == "start" or "learned" not in name for name in made.others)


def test_equal_arguments_give_equal_tables():
    again = learn(ONE.model("flow", "flow"), (32, 1))
    assert np.array_equal(again.rows, found().rows)
    other = learn(ONE.model("flow", "flow"), (32, 1), seed=1)
    assert not np.array_equal(other.rows, found().rows)


def test_the_table_is_saved_and_runs_to_the_bit(tmp_path):
    file = tmp_path / "mine.table.json"
    found().save(file)
    tables = found().table, ardiff.StepTable.load(file)
    model = ONE.model("flow", "flow")
    samples = [ardiff.sample(model, (16, 1), table=table, seed=0) for table in tables]
    assert torch.equal(*samples)


def test_the_report_names_the_best_standard_tables():
    text, drawing, others = str(found()), found().svg(), found().others
    assert {"dpmpp-2m, karras", "unipc, log-snr, 0.02", "learned"} <= set(others)
    assert f"x {min(others, key=others.get)} (" in text
    assert len(text.splitlines()) == 3 + 10 + 4
    assert drawing.startswith("<svg") and drawing.count("<polyline") == 5


def test_the_fit_guides_as_the_loop_does():
    """The data prediction of one row, of the model of the fit and by the product's loop."""

    def model(x, level, condition):
        return condition * torch.tanh(x)

    path, weight = ardiff.get_path("flow"), torch.tensor([[1.0], [3.0]])
    given = {"condition": torch.full((2, 1), 0.5), "uncond": torch.full((2, 1), -0.2)}
    fitted = Model(model, (2, 3), path, "flow", *given.values(), weight)
    y, s = torch.randn(1, 2, 3), torch.tensor(0.7)
    table = ardiff.solver("ddim", path="flow", prediction="flow", steps=1, grid=[0.7 / 1.7])
    key, stream = make_key(0, "cpu"), make_stream(None, 2, 0, "cpu")
    x = y[0] * float(table.alpha[0])
    wanted = run(table, model, x, key=key, stream=stream, guidance=weight[:, 0], **given)
    assert torch.allclose(fitted(y, s)[0], wanted, atol=1e-6)


def test_a_table_is_learned_for_a_range_of_weights():
    def model(x, level, condition):
        return condition * torch.tanh(3 * x)

    given = {"condition": torch.full((16, 1), 0.5), "uncond": torch.full((16, 1), 0.4)}
    fit = functools.partial(
        learn_table, model, (16, 1), path="edm", prediction="sample", steps=3, iterations=2,
        **given, **CHEAP,
    )  # fmt: skip
    rows = [fit(guidance=weight).rows for weight in (1.0, (1.0, 1.0), (1.0, 3.0))]
    assert np.array_equal(rows[0], rows[1]) and not np.array_equal(rows[0], rows[2])


def test_a_condition_may_differ_by_batch():
    asked = []

    def condition(batch):
        asked.append(batch)
        return torch.full((16, 1), 0.1 * batch)

    def model(x, level, condition):
        return condition + 0.1 * torch.tanh(x)

    made = learn_table(
        model, (16, 1), path="edm", prediction="sample", steps=3, iterations=2, batches=2,
        condition=condition, teacher_steps=20,
    )  # fmt: skip
    assert asked == [0, 1, 2, 3] and np.isfinite(made.error)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpmpp-2m", "dpmpp-2m-sde", "unipc"])
def test_rows_and_parameters_hold_what_a_table_does(path, solver):
    """Table to rows to table, and rows to parameters to rows, to rounding."""
    table = ardiff.solver(solver, path=path, prediction="v_prediction", steps=7)
    rows = from_table(table)
    back = to_table(rows, path, "v_prediction", solver)
    for name in ("p_x", "p_o", "x_x", "x_0", "x_m", "x_d", "x_n"):
        assert np.allclose(back.column(name), table.column(name), rtol=0, atol=1e-12), name
    assert np.allclose(back.level, table.level, rtol=1e-12)
    family = Family(7, rows[0, 0], noisy=True)
    made = family.rows(family.parameters(rows))
    assert np.allclose(made, rows, rtol=0, atol=1e-12)
    assert np.allclose(made[:, 1:6].sum(1), 1, rtol=0, atol=1e-14)


@pytest.mark.parametrize("solver", ["heun", "rtk-harmonic", "rtk-uld", "rtk-mala"])
def test_a_table_of_another_form_has_no_rows(solver):
    options = {"dim": 2} if solver == "rtk-mala" else {}
    table = ardiff.solver(solver, path="edm", prediction="sample", steps=9, **options)
    assert from_table(table) is None


def test_a_third_prediction_runs_as_it_was_fitted():
    """Rows with r, in the product's loop and in the simulation of the fit."""
    rows = table_fit.adams_rows(np.geomspace(40, 0.02, 9))
    family = Family(9, 40.0, third=True)
    parameters = family.parameters(rows)
    parameters[4, 3:] = 0.05
    rows = family.rows(parameters)
    assert (rows[3:, 5] != 0).all() and not rows[:3, 5].any()
    model, y = TWO.model("edm", "sample"), 40 * torch.randn(8, 2)
    simulated = table_fit.simulate(lambda y, s: model(y, s.expand(len(y))), rows, y)
    table = to_table(rows.numpy(), "edm", "sample", "mine")
    assert table.memories == 3 and np.allclose(from_table(table), rows, rtol=0, atol=1e-12)
    key, stream = make_key(0, "cpu"), make_stream(None, 8, 0, "cpu")
    with backend("reference"):
        made = run(table, model, y, key=key, stream=stream)
    assert torch.allclose(made, simulated, atol=1e-4)


def test_the_teacher_is_of_third_order():
    """Half the step, an eighth of the error: on a Gaussian, whose ODE is known, from where D is 0,
    so that the first steps, of lower order, are exact."""
    gaussian = lambda y, s: 0.25 * y / (0.25 + s * s)  # noqa: E731
    y = torch.full((1, 1), 750.0, dtype=torch.float64)
    errors = []
    for steps in (161, 321):
        s = np.geomspace(1000.0, 0.1, steps)
        rows = torch.tensor(table_fit.adams_rows(s))[:-1]
        end = table_fit.simulate(gaussian, rows, y)
        exact = 750.0 * ((0.25 + 0.1**2) / (0.25 + 1000.0**2)) ** 0.5
        errors.append(abs(float(end) - exact))
    assert 6.5 < errors[0] / errors[1] < 9.5


BAD = {
    "no batch": ({"shape": (4, 1)}, ValueError, "B >= 8"),
    "steps": ({"steps": 1}, ValueError, "steps must be an integer >= 2"),
    "teacher": ({"teacher_steps": 10}, ValueError, "at least 4 steps, 16"),
    "iterations": ({"iterations": 0}, ValueError, "iterations must be"),
    "prediction": ({"prediction": "noise"}, ValueError, "unknown prediction"),
    "guidance": ({"guidance": (3.0, 1.0)}, ValueError, "low, high"),
    "uncond": ({"uncond": 0}, ValueError, "pass guidance too"),
    "start": ({"start": "ddim"}, TypeError, "must be a StepTable"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_arguments_are_refused_before_any_call(what):
    given, error, said = BAD[what]

    def model(x, level, condition):
        raise AssertionError("the model was called")

    with pytest.raises(error, match=said):
        learn(model, **{"shape": (16, 1), **given})


def test_starts_that_do_not_fit_are_refused():
    def table(solver="ddim", path="flow", steps=4):
        return ardiff.solver(solver, path=path, prediction="flow", steps=steps)

    for start in (table(steps=5), table("ddpm"), table("heun")):
        with pytest.raises(ValueError, match="must be a table of 4 rows"):
            learn(ONE.model("flow", "flow"), (16, 1), start=start)
    with pytest.raises(ValueError, match="start is of path ou"):
        learn(ONE.model("flow", "flow"), (16, 1), start=table(path="ou"))


def test_a_teacher_that_diverges_is_an_error():
    def model(x, level, condition):
        return x * float("inf")

    with pytest.raises(FloatingPointError, match="ends at NaN or infinity"):
        learn(model, (16, 1))
