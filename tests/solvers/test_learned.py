"""The solver ``learned``: its rows are the formulas of its docstring, on levels of its own."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

import ardiff
from ardiff.solvers import _learned
from ardiff.tables.paths import PATHS, PREDICTIONS
from ardiff.tables.ratio_rows import from_table
from ardiff.training.table_fit import error
from benchmarks import train_learned
from tests._support.solver_problem import Problem, run_table

SETS = {"wide": None, "unit": 1.0}
CASES = [(8, None), (5, 1.0), (32, 2.0), (8, 7.0)]


def levels_within(path, s):
    """The levels of an entry, drawn in to what the path covers."""
    high, low = min(s[0], path.ratio_max), max(s[-1], path.ratio_min)
    share = np.log(s / s[0]) / np.log(s[-1] / s[0])
    return high * (low / high) ** share


def expected(problem, entry, scale, rows):
    """The docstring's step, `rows` times, from the problem's start."""
    s = levels_within(problem.path, np.array(entry["s"]) * scale)
    level = problem.path.level(s.clip(problem.path.ratio_min, problem.path.ratio_max))
    y = problem.path.init_scale(level[0]) * problem.start / problem.at(level[0])[0]
    past = []
    for i in range(rows):
        alpha = problem.at(level[i])[0]
        d, *older = past = [problem.denoise(alpha * y, level[i]), *past][:3]
        last = i == len(s) - 1
        h = math.inf if last else math.log(s[i] / s[i + 1])
        rho = entry["last"] if last else math.exp(entry["a"][i] - h)
        inner = d
        if i >= 1:
            ratio = 1.0 if last else h / math.log(s[i - 1] / s[i])
            inner = inner + entry["p"][i] * ratio / 2 * (d - older[0])
        if i >= 2:
            inner = inner + entry["q"][i] * (older[0] - older[1])
        y = rho * y + (1 - rho) * inner
    return y if rows == len(s) else problem.at(level[rows])[0] * y


@pytest.mark.parametrize("denoise_last", [True, False])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("steps", "scale"), CASES)
def test_rows_are_the_formulas(steps, scale, path, prediction, denoise_last):
    problem = Problem(path)
    table = ardiff.solver(
        "learned", path=path, prediction=prediction, steps=steps - (not denoise_last), scale=scale,
        denoise_last=denoise_last,
    )  # fmt: skip
    entry = _learned.entries("wide" if scale is None else "unit")[steps]
    rows = steps if denoise_last else steps - 1
    assert table.calls == len(table) == rows and table.solver == "learned"
    want = expected(problem, entry, 1.0 if scale is None else scale, rows)
    np.testing.assert_allclose(run_table(table, problem), want, rtol=0, atol=3e-10)


def test_that_the_comparison_can_fail():
    problem, entry = Problem("ou"), copy.deepcopy(_learned.entries("unit")[8])
    table = ardiff.solver("learned", path="ou", prediction="sample", steps=8, scale=1.0)
    for name in ("a", "p", "q"):
        changed = copy.deepcopy(entry)
        changed[name][4] += 1e-6
        off = np.abs(run_table(table, problem) - expected(problem, changed, 1.0, 8)).max()
        assert off > 1e-9, name


@pytest.mark.parametrize("name", SETS)
def test_the_files_hold_sound_tables(name):
    tables = _learned.entries(name)
    assert {5, 8, 16, 32} <= set(tables)
    for steps, entry in tables.items():
        assert all(len(entry[key]) == steps for key in ("s", "a", "p", "q"))
        assert np.all(np.diff(entry["s"]) < 0) and entry["s"][0] == 40 and entry["s"][-1] > 0
        again = _learned.entry_of(_learned.rows(entry, np.array(entry["s"])))
        for key in entry:
            np.testing.assert_allclose(again[key], entry[key], rtol=2e-4, atol=2e-5)


def test_steps_is_a_bound():
    known = sorted(_learned.entries("wide"))
    for steps in (*range(1, 34), 100):
        table = ardiff.solver("learned", path="edm", prediction="sample", steps=steps)
        assert table.calls == max(n for n in known if n <= steps)


def test_scale_moves_the_levels():
    one, three = (
        ardiff.solver("learned", path="edm", prediction="sample", steps=8, scale=scale)
        for scale in (1.0, 3.0)
    )
    np.testing.assert_allclose(three.level, 3 * one.level, rtol=1e-12)
    np.testing.assert_allclose(from_table(three)[:, 1:], from_table(one)[:, 1:], atol=1e-12)


def test_given_levels_have_the_rows_of_unipc():
    levels = [10.0, 4.0, 1.5, 0.4, 0.1]
    for grid in (levels, "karras"):
        options = {"path": "edm", "prediction": "epsilon", "steps": 5, "grid": grid}
        table, other = (ardiff.solver(name, **options) for name in ("learned", "unipc"))
        assert table.solver == "unipc"
        np.testing.assert_array_equal(table.coefficients, other.coefficients)


def test_a_shift_of_its_own_levels_is_refused():
    with pytest.raises(ValueError, match="learned has levels of its own: shift needs a named grid"):
        ardiff.solver("learned", path="flow", prediction="flow", steps=8, shift=3.0)


@pytest.mark.parametrize("scale", [0, -1.0, math.inf, math.nan, "unit"])
def test_a_bad_scale_is_refused(scale):
    with pytest.raises(ValueError, match="scale must be positive and finite"):
        ardiff.solver("learned", path="edm", prediction="sample", steps=8, scale=scale)


def test_a_step_without_the_last_prediction_needs_two_levels():
    assert (
        ardiff.solver("learned", path="edm", prediction="sample", steps=1, denoise_last=False).calls
        == 1
    )


@pytest.mark.parametrize("guidance", [0.0, 3.0])
@pytest.mark.parametrize("name", SETS)
def test_ends_nearer_to_the_exact_ode_than_standard_tables(name, guidance):
    """On mixtures of norm 1 that were not fitted to, half the error of the best on three grids."""
    given = {"guided": float(guidance > 0), "guidance": (guidance, guidance)}
    cases = train_learned.cases(range(1, 7), 24, (1.0, 1.0), 3, **given)
    for steps in (5, 8):
        best = math.inf
        for solver in ("dpmpp-2m", "unipc"):
            for grid in ({}, {"ratio_min": 0.02}, {"grid": "karras"}):
                options = {"path": "edm", "prediction": "sample", "steps": steps, **grid}
                best = min(best, error(cases, from_table(ardiff.solver(solver, **options))))
        table = ardiff.solver(
            "learned", path="edm", prediction="sample", steps=steps, scale=SETS[name]
        )
        assert error(cases, from_table(table)) < 0.5 * best, steps


def test_the_training_of_a_table_runs():
    """Two steps, little data: better than the start; and the seeds kept for tests are not used."""
    seeds = {*train_learned.TRAINING_SEEDS, *train_learned.HELD_OUT_SEEDS}
    assert not seeds & {*range(101, 110), *range(201, 210)}
    batches = [train_learned.cases(range(2001, 2004), 8, (1.0, 1.0), 1)]
    entry, found, before = train_learned.train(3, batches, batches[0], iterations=4)
    assert found < 0.8 * before and len(entry["s"]) == 3
    rows = torch.tensor(_learned.rows(entry, np.array(entry["s"])))
    assert error(batches[0], rows) == pytest.approx(found, rel=1e-2)
