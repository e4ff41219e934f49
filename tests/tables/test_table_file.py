"""Table files: what is saved is loaded to the bit, and no damaged file makes a table."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import numpy as np
import pytest

import ardiff
from ardiff.solvers import SOLVERS, solver_options
from ardiff.tables import table_file
from ardiff.tables.diffusers_schedules import DiscretePath, beta_schedule
from ardiff.tables.table import COLUMNS, StepTable


def bits(table):
    """Every field, arrays as their bytes."""
    values = {f.name: getattr(table, f.name) for f in fields(table) if f.init}
    return {
        name: (value.dtype, value.shape, value.tobytes()) if hasattr(value, "dtype") else value
        for name, value in values.items()
    }


def make(solver="unipc", path="vp-linear", **options):
    if "dim" in solver_options(solver):
        options["dim"] = 8
    return ardiff.solver(solver, path=path, prediction="v_prediction", steps=12, **options)


@pytest.mark.parametrize("path", ["vp-linear", "flow"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_loaded_table_has_the_bits_of_the_saved_one(solver, path, tmp_path):
    table, file = make(solver, path), tmp_path / "a.table.json"
    table.save(file)
    assert bits(StepTable.load(file)) == bits(table)
    first = file.read_bytes()
    StepTable.load(str(file)).save(file)
    assert file.read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


def test_every_column_and_bit_is_kept(tmp_path):
    """Numbers with all 53 bits, subnormal ones, and the sign of -0."""
    rng, rows = np.random.default_rng(0), len(COLUMNS)
    coefficients = np.zeros((rows, 20))
    for i, columns in enumerate(COLUMNS.values()):
        numbers = rng.standard_normal(len(columns)) * 10.0 ** rng.integers(-30, 30, len(columns))
        kept = [not column.startswith("lv_") for column in columns]
        coefficients[i, : len(columns)] = np.where(kept, numbers, 0.0)
    coefficients[0, :2] = -0.0, 5e-324
    table = StepTable(
        coefficients, rng.standard_normal(rows), [True, True, False], tuple(COLUMNS), 0.1, "mine",
        "flow", "a solver", saves_origin=[False, True, False], ball_margin=[0.0, 0.3, 0.0],
        energy=True,
    )  # fmt: skip
    table.save(tmp_path / "a")
    loaded = StepTable.load(tmp_path / "a")
    assert bits(loaded) == bits(table)
    assert np.signbit(loaded.coefficients[0, 0]) and loaded.coefficients[0, 1] == 5e-324


def test_a_path_of_own_betas_is_kept_by_its_coefficients(tmp_path):
    betas = beta_schedule("scaled_linear", 1000, 0.00085, 0.012)
    path = DiscretePath(np.cumprod(1 - betas))
    table = ardiff.solver("dpmpp-2m", path=path, prediction="epsilon", steps=5)
    table.save(tmp_path / "a")
    loaded = StepTable.load(tmp_path / "a")
    assert loaded.path == "discrete" and bits(loaded) == bits(table)
    np.testing.assert_array_equal(loaded.sigma, path.sigma(table.level))


def saved(tmp_path, solver="dpmpp-2m"):
    make(solver).save(tmp_path / "a.table.json")
    return tmp_path / "a.table.json", json.loads((tmp_path / "a.table.json").read_text())


def set_at(*place):
    *place, value = place

    def edit(found):
        for key in place[:-1]:
            found = found[key]
        found[place[-1]] = value

    return edit


EDITS = {
    "another object": (lambda v: v.clear(), 'expected an object with "format"'),
    "another format": (set_at("format", "x"), 'expected an object with "format"'),
    "a newer version": (set_at("version", 2), "is of version 2, written by a newer release"),
    "no version": (lambda v: v.pop("version"), "version must be an integer of 1 or more, got None"),
    "a false version": (set_at("version", True), "version must be an integer of 1 or more"),
    "a missing name": (lambda v: v.pop("energy"), "the file lacks energy"),
    "an unknown name": (set_at("more", 1), "the file has an unknown 'more'"),
    "a prediction": (set_at("prediction", "x"), "unknown prediction 'x'"),
    "a name that is no text": (set_at("solver", 3), "solver must be text, got 3"),
    "no rows": (set_at("rows", []), "rows must be a list of one row or more"),
    "a row": (set_at("rows", 1, 3), "row 1 must be an object, got 3"),
    "an op": (set_at("rows", 1, "op", "x"), "row 1: unknown op 'x'; known: diffusion, uld, accept"),
    "an op that is a list": (set_at("rows", 1, "op", []), "row 1: unknown op"),
    "a row's name": (set_at("rows", 1, "x", 1), "row 1 has an unknown 'x'"),
    "a row without level": (lambda v: v["rows"][1].pop("level"), "row 1 lacks level"),
    "a column": (set_at("rows", 1, "weights", "z_z", 1.0), "of op diffusion has an unknown 'z_z'"),
    "weights": (set_at("rows", 1, "weights", [1.0]), "row 1: weights must be an object"),
    "a text weight": (set_at("rows", 1, "weights", "x_0", "1"), "x_0 must be a number, got '1'"),
    "a true weight": (set_at("rows", 1, "weights", "x_0", True), "row 1, x_0 must be a number"),
    "a weight past float32": (set_at("rows", 1, "weights", "x_0", 1e39), "row 1, column x_0 is 1e"),
    "a huge integer": (set_at("rows", 1, "weights", "x_0", 10**400), "row 1, x_0 must be finite"),
    "a level": (set_at("rows", 1, "level", None), "row 1, level must be a number, got None"),
    "a call": (set_at("rows", 1, "call", 1), "row 1, call must be true or false, got 1"),
    "alpha of some rows": (lambda v: v["rows"][1].pop("alpha"), "alpha and sigma must both"),
    "a negative init_scale": (set_at("init_scale", -1.0), "init_scale must be positive"),
    "a midpoint that is none": (set_at("rows", 1, "midpoint", True), "row 1 is a midpoint"),
    "a long text": (set_at("rows", 1, "level", "x" * 10**6), "level must be a number, got 'xxx"),
}  # fmt: skip


@pytest.mark.parametrize("case", EDITS)
def test_a_changed_file_is_refused(case, tmp_path):
    file, value = saved(tmp_path)
    edit, message = EDITS[case]
    edit(value)
    file.write_text(json.dumps(value))
    with pytest.raises(ValueError) as refusal:
        StepTable.load(file)
    assert str(refusal.value).startswith(str(file)) and message in str(refusal.value)
    assert len(str(refusal.value)) < 600


TEXTS = {
    "an empty file": b"",
    "no JSON": b"\x89PNG\r\n",
    "a list": b"[]",
    "bytes that are no UTF-8": b'{"format": "\xff"}',
    "a name twice": b'{"format": 1, "format": 2}',
    "NaN": b'{"format": NaN}',
    "infinity": b'{"format": -Infinity}',
    "a long integer": b'{"format": ' + b"9" * 5000 + b"}",
    "depth": b"[" * 200_000,
}


@pytest.mark.parametrize("case", TEXTS)
def test_what_is_no_table_file_is_refused(case, tmp_path):
    file = tmp_path / "a"
    file.write_bytes(TEXTS[case])
    with pytest.raises(ValueError, match="not a table file"):
        StepTable.load(file)


def test_a_name_that_is_there_twice_is_refused(tmp_path):
    """Of JSON readers most take the last."""
    file, _ = saved(tmp_path)
    file.write_text(file.read_text().replace('"x_0": ', '"x_0": 0.5, "x_0": ', 1))
    with pytest.raises(ValueError, match="'x_0' is there twice"):
        StepTable.load(file)


def test_every_cut_of_a_file_is_refused(tmp_path):
    file, _ = saved(tmp_path)
    content = file.read_bytes().rstrip()
    for length in range(0, len(content), 97):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match="not a table file, or a damaged one"):
            StepTable.load(file)


def test_files_that_cannot_be_read_or_written(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        StepTable.load(tmp_path / "none.json")
    with pytest.raises(ValueError, match="is no regular file"):
        StepTable.load(tmp_path)
    with pytest.raises(IsADirectoryError):
        make().save(tmp_path)
    table = make("ddim")
    file = tmp_path / "a"
    table.save(file)
    before = file.read_bytes()
    spare = table.coefficients.copy()
    spare[1, -1] = 1.0
    op = replace(table, coefficients=spare, op=("uld",) * len(table))
    with pytest.raises(ValueError, match="row 1 of op uld has a number past its 14 columns"):
        op.save(file)
    monkeypatch.setattr(table_file, "SIZE_LIMIT", len(before) - 1)
    with pytest.raises(ValueError, match="are read again"):
        table.save(file)
    assert file.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a"]
    with pytest.raises(ValueError, match="a table file has at most"):
        StepTable.load(file)
