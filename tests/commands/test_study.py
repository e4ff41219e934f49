"""`ardiff study mixture`: one command with a seed, its files, and what it refuses."""

from __future__ import annotations

import json

import pytest

from ardiff.commands._parser import main
from ardiff.study import whole
from ardiff.study.mixture import METHODS
from ardiff.study.targets import TARGETS

SMALL = (
    *("study", "mixture", "--parts", "solvers", "--targets", "random-3", "--budgets", "5", "8"),
    *("--methods", "ddpm", "plan", "unipc", "--noise-seeds", "2", "--samples", "200"),
)


def study(out, *options) -> tuple[dict, str]:
    """What a study wrote: its data and its page."""
    assert main([*SMALL, "--out", str(out), *options]) == 0
    return json.loads((out / "study.json").read_text()), (out / "study.md").read_text()


def test_equal_seeds_give_equal_studies(tmp_path, capsys):
    """In one process and in two; another seed gives other draws."""
    one, page = study(tmp_path / "one", "--processes", "1", "--scores", "exact", "guided")
    two, same = study(tmp_path / "two", "--processes", "2", "--scores", "exact", "guided")
    other, _ = study(tmp_path / "other", "--no-plots", "--seed", "1")
    assert (one, page) == (two, same) and one["rows"] != other["rows"]
    assert len(one["rows"]) == 2 * 2 * 3 * 2  # scores, budgets, methods, seeds of the noise
    w2 = one["columns"].index("sliced_w2")
    assert all(row[w2] > 0 for row in one["rows"])
    assert {tuple(each[:2]) for each in one["floors"]} == {
        ("random-3", "exact"),
        ("random-3", "guided"),
    }
    for score in ("exact", "guided"):
        assert f"## Score: {score}" in page
        plot = (tmp_path / "one" / f"pareto-{score}.svg").read_text()
        assert plot == (tmp_path / "two" / f"pareto-{score}.svg").read_text()
        assert plot.startswith("<?xml")
    assert not list((tmp_path / "other").glob("*.svg"))
    assert "What `ardiff plan` recommends" in page and page in capsys.readouterr().out


def test_the_cut_runs_every_part(tmp_path):
    out = tmp_path / "cut"
    assert main(["study", "mixture", "--cut", "--no-plots", "--out", str(out)]) == 0
    data, page = json.loads((out / "study.json").read_text()), (out / "study.md").read_text()
    assert set(data["experiments"]) == {"paper", "adjusted", "scaling"}
    assert {row[1] for row in data["rows"]} == {"exact", "perturbed", "guided", "learned"}
    for name, found in data["experiments"].items():
        assert whole.EXPERIMENTS[name].markdown(found) in page


def test_the_full_study_runs_every_solver_on_every_target():
    assert whole.FULL.methods == METHODS and len(whole.FULL.seeds) >= 4
    assert (whole.FULL.budgets[0], whole.FULL.budgets[-1]) == (5, 64)
    exact = {target for target, score in whole.FULL.problems if score == "exact"}
    assert exact == {*TARGETS, *whole.HELD_OUT} and len(whole.HELD_OUT) == 18


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--methods", "euler-2"), "--methods: unknown 'euler-2'; known: ddim"),
        (("--scores", "wrong"), "--scores: unknown 'wrong'; known: exact"),
        (("--targets", "circle"), "unknown target 'circle'; known: circle-6"),
        (("--budgets", "0"), "expected at least 1, got"),
        (("--samples", "-5"), "expected at least 1, got"),
        (("--processes", "0"), "--processes: expected at least 1, got 0"),
    ],
)
def test_bad_options_are_refused_before_any_work(options, message, tmp_path, capsys):
    out = tmp_path / "study"
    assert main(["study", "mixture", *options, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists() or not list(out.iterdir())


def test_plots_are_asked_for_before_any_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ardiff.commands.study.find_spec", lambda name: None)
    assert main(["study", "mixture", "--out", str(tmp_path)]) == 2
    assert "need matplotlib: pip install matplotlib" in capsys.readouterr().err
