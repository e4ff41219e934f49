"""Plan files: what is written is read, and nothing else is."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

import ardiff
from ardiff.ar.sampler import ARSampler, load
from ardiff.planning.plan_file import SamplePlan, read_plan, write_plan

PLANS = {
    "bare": SamplePlan(None, "edm", "ddim", 8),
    "with everything": SamplePlan(
        "sun-shadow", "vp-cosine", "rtk-uld", 30,
        {"grid": "karras", "rho": 3.0, "ratio_min": 0.05, "stages": 4, "gamma": 1.5,
         "warm_start": "ancestral"},
        "picard", 2.5,
    ),
    "rows ahead": SamplePlan("a/folder", "flow", "learned", 12, {"scale": 0.5}, 4, -1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
def test_what_is_written_is_read(name: str, tmp_path) -> None:
    write_plan(tmp_path / "x.plan.json", PLANS[name])
    assert read_plan(tmp_path / "x.plan.json") == PLANS[name]


def test_the_arguments_of_a_sampler() -> None:
    assert PLANS["with everything"].sampler_options() == {
        "solver": "rtk-uld", "steps": 30, "guidance": 2.5, "lookahead": "auto", "mode": "picard",
        "grid": "karras", "rho": 3.0, "ratio_max": 40.0, "ratio_min": 0.05, "shift": 1.0,
        "stages": 4, "gamma": 1.5, "warm_start": "ancestral",
    }  # fmt: skip
    assert PLANS["rows ahead"].sampler_options()["lookahead"] == 4
    with pytest.raises(ValueError, match="the plan is for path edm, the model has flow"):
        PLANS["bare"].check_path("flow")
    PLANS["bare"].check_path("edm")


@pytest.mark.parametrize(
    ("name", "options"), [("ddim", {}), ("learned", {}), ("ddim", {"grid": "karras"})]
)
def test_the_grid_is_that_of_the_solver_and_not_of_the_config(name: str, options: dict) -> None:
    """The shipped model's own is karras with rho 3 from 0.05, on which nothing is learned."""
    plan = SamplePlan("sun-shadow", "vp-cosine", name, 8, options)
    model = load("sun-shadow")
    table = ARSampler(model, **plan.sampler_options()).table
    about = {"path": "vp-cosine", "prediction": model.prediction, "steps": 8}
    assert table.solver == name
    np.testing.assert_array_equal(table.level, ardiff.solver(name, **about, **options).level)
    assert not np.array_equal(table.level, ARSampler(model, name, 8, **options).table.level)


def changed(**values) -> str:
    plan = {
        "format": "ardiff plan", "version": 1, "model": None, "path": "edm", "solver": "ddim",
        "steps": 8, "options": {}, "lookahead": None, "guidance": None,
    }  # fmt: skip
    return json.dumps({name: v for name, v in {**plan, **values}.items() if v != "absent"})


DAMAGED = {
    "empty": ("", "not a plan file, or a damaged one"),
    "cut short": (changed()[:-9], "not a plan file, or a damaged one"),
    "not text": ("\udcff", "not a plan file, or a damaged one"),
    "a list": ("[1, 2]", 'not a plan file: expected an object with "format": "ardiff plan"'),
    "a table": (changed(format="ardiff step table"), "as ardiff plan --out writes it"),
    "a newer version": (changed(version=2), "is of version 2, written by a newer release"),
    "no version": (changed(version="absent"), "version must be an integer of 1 or more, got None"),
    "a name twice": (changed()[:-1] + ', "steps": 9}', "'steps' is there twice"),
    "NaN": (changed(guidance=float("nan")), "NaN is no number"),
    "nested": ("[" * 100_000, "not a plan file, nested too deeply"),
    "something missing": (changed(solver="absent"), "the file lacks solver"),
    "something more": (changed(seed=3), "has an unknown 'seed'"),
    "model": (changed(model=3), "model must be a name, a folder or null, got 3"),
    "path": (changed(path="ve"), "unknown path 've'; known paths: "),
    "path no name": (changed(path=["edm"]), "unknown path"),
    "solver": (changed(solver="eulr"), "unknown solver 'eulr'"),
    "solver no name": (changed(solver=None), "solver must be a name, got None"),
    "steps": (changed(steps=0), "steps must be an integer of 1 or more, got 0"),
    "steps of a kind": (changed(steps=True), "steps must be an integer of 1 or more, got True"),
    "options": (changed(options=[]), r"options must be an object, got \[\]"),
    "option of another": (changed(options={"tau": 0.2}), "ddim does not take the option 'tau'"),
    "option of a kind": (changed(options={"eta": [1]}), r"option eta must be a number, got \[1\]"),
    "option yes": (changed(options={"eta": True}), "option eta must be a number, got True"),
    "option null": (changed(options={"eta": None}), "option eta must be a number, got None"),
    "option of 400 digits": (changed(options={"eta": 10**400}), "option eta must be finite"),
    "grid": (changed(options={"grid": "even"}), "unknown time grid 'even'"),
    "grid of levels": (changed(options={"grid": [1]}), "unknown time grid"),
    "end of a grid": (changed(options={"ratio_max": -1}), "option ratio_max must be positive"),
    "end by name": (changed(options={"rho": "7"}), "option rho must be a number, got '7'"),
    "end of no number": (changed(options={"rho": None}), "option rho must be a number, got None"),
    "end of 400 digits": (changed(options={"rho": 10**400}), "option rho must be finite"),
    "grid of null": (changed(options={"grid": None}), "unknown time grid None"),
    "steps of a year": (changed(steps=10**9), "steps must be 100,000 at most, got 1000000000"),
    "lookahead": (changed(lookahead="fast"), "unknown lookahead 'fast'; known: auto, speculative"),
    "lookahead 0": (changed(lookahead=0), "lookahead must be an integer of 1 or more, got 0"),
    "guidance": (changed(guidance="2"), "guidance must be a number, got '2'"),
    "guidance of 400 digits": (changed(guidance=10**400), "guidance must be finite"),
    "guidances": (changed(guidance=[2]), r"guidance must be a number, got \[2\]"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_or_foreign_file_is_refused_by_name(name: str, tmp_path) -> None:
    text, said = DAMAGED[name]
    file = tmp_path / "x.plan.json"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=said) as refused:
        read_plan(file)
    assert str(refused.value).startswith(str(file))


def test_what_is_no_file_is_refused(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no such plan file"):
        read_plan(tmp_path / "x.plan.json")
    with pytest.raises(ValueError, match="is no regular file, expected a plan file"):
        read_plan(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is no regular file"):
        read_plan(tmp_path / "pipe")
    (tmp_path / "big").write_bytes(b" " * (2**20 + 1))
    with pytest.raises(ValueError, match="a plan file has at most 1,048,576 bytes"):
        read_plan(tmp_path / "big")
