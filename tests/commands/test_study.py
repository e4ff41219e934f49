"""`ardiff study mixture`: one command with a seed, its files, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ardiff.commands import study as command
from ardiff.commands._parser import main
from ardiff.study import paper, whole
from ardiff.study.mixture import METHODS, run_problem
from ardiff.study.targets import TARGETS

SMALL = (
    *("study", "mixture", "--parts", "solvers", "--targets", "random-3", "--budgets", "5", "8"),
    *("--methods", "ddpm", "plan", "unipc", "--noise-seeds", "2", "--samples", "200"),
)


def study(out, *options) -> tuple[dict, str]:
    """What a study wrote: its data and its page."""
    assert main([*SMALL, "--out", str(out), *options]) == 0
    return json.loads((out / "study.json").read_text()), (out / "study.md").read_text()


def problem_rows(seed: int):
    """The first rows of the study, in this process."""
    return run_problem(
        "random-3", "exact", methods=("ddpm",), budgets=(5,), seeds=(0, 1), samples=200,
        training_steps=0, seed=seed,
    )[0]  # fmt: skip


def test_equal_seeds_give_equal_studies(tmp_path, capsys):
    """In one process and in two; another seed gives others."""
    options = ("--seed", "1", "--scores", "exact", "guided", "--processes")
    one, page = study(tmp_path / "one", *options, "1")
    two, same = study(tmp_path / "two", *options, "2")
    assert (one, page) == (two, same)
    assert len(one["rows"]) == 2 * 2 * 3 * 2  # scores, budgets, methods, seeds of the noise
    w2 = one["columns"].index("sliced_w2")
    assert all(row[w2] > 0 for row in one["rows"])
    found = pytest.approx([row[w2] for row in one["rows"][:2]], rel=1e-3)  # four digits are kept
    first, other = ([row.metrics["sliced_w2"] for row in problem_rows(seed)] for seed in (1, 0))
    assert first == found != other
    assert {tuple(each[:2]) for each in one["floors"]} == {
        ("random-3", "exact"),
        ("random-3", "guided"),
    }
    for score in ("exact", "guided"):
        assert f"## Score: {score}" in page
        plot = (tmp_path / "one" / f"pareto-{score}.svg").read_text()
        assert plot == (tmp_path / "two" / f"pareto-{score}.svg").read_text()
        assert plot.startswith("<?xml")
    assert "What `ardiff plan` recommends" in page and page in capsys.readouterr().out


def test_the_cut_runs_every_part(tmp_path):
    """Cut once more: of the mode ``paper``, further budgets and seeds other tests speak."""
    out = tmp_path / "cut"
    options = ("--cut", "--modes", "correct", "--budgets", "8", "--noise-seeds", "1")
    options += ("--no-plots", "--processes", "1", "--out", str(out))
    assert main(["study", "mixture", *options]) == 0
    assert not list(out.glob("*.svg"))
    data, page = json.loads((out / "study.json").read_text()), (out / "study.md").read_text()
    assert set(data["experiments"]) == {"paper", "adjusted", "scaling"}
    assert {row[1] for row in data["rows"]} == {"exact", "perturbed", "guided", "learned"}
    assert {row["mode"] for row in data["experiments"]["paper"]["rows"]} == {"correct"}
    for name, found in data["experiments"].items():
        part = whole.EXPERIMENTS[name]
        assert f"## {part.TITLE}\n\n{part.markdown(found).strip()}" in page


def test_the_options_name_what_there_is():
    """The command's own lists save its help the import of torch."""
    assert command.PARTS == ("solvers", *whole.EXPERIMENTS)
    assert command.MODES == paper.MODES == whole.FULL.modes == whole.CUT.modes


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
        (("--targets", "circle"), "--targets: unknown target 'circle'; known: circle-6"),
        (("--targets", "random-x"), "--targets: unknown target 'random-x'; known: circle-6"),
        (("--modes", "both"), "argument --modes: invalid choice: 'both'"),
        (("--parts", "all"), "argument --parts: invalid choice: 'all'"),
        (("--budgets", "8", "0"), "--budgets: expected at least 1, got 0"),
        (("--noise-seeds", "0"), "--noise-seeds: expected at least 1, got 0"),
        (("--samples", "-5"), "--samples: expected at least 2, got -5"),
        (("--samples", "0"), "--samples: expected at least 2, got 0"),
        (("--processes", "0"), "--processes: expected at least 1, got 0"),
        (("--seed", "-1"), "--seed: expected 0 to 4294967295, got -1"),
        (
            ("--parts", "paper", "--budgets", "8"),
            "--budgets is for the part solvers, which --parts",
        ),
        (
            ("--parts", "solvers", "--modes", "paper"),
            "--modes is for the part paper, which --parts",
        ),
    ],
)
def test_bad_options_are_refused_before_any_work(options, message, tmp_path, capsys):
    out = tmp_path / "study"
    try:
        code = main(["study", "mixture", *options, "--out", str(out)])
    except SystemExit as stop:  # of argparse
        code = stop.code
    said = capsys.readouterr().err
    assert code == 2 and message in said and len(said.splitlines()) == 1
    assert not out.exists()


def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    assert main(["study", "mixture", "--no-plots", "--out", str(tmp_path / "file")]) == 2
    assert "--out: cannot write in" in capsys.readouterr().err
    assert main(["study", "mixture", "--no-plots", "--out", str(tmp_path / "file" / "below")]) == 2
    assert (tmp_path / "file").read_text() == "kept"


def session(leader: int) -> list[int]:
    """The processes of a session that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def waited_for(condition, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("ctrl_c", [True, False], ids=["ctrl-c", "killed"])
def test_no_process_outlives_the_command(ctrl_c, tmp_path):
    """Ctrl-C, which the terminal sends to all processes, is one line and status 130; where the
    command is killed alone its processes end by themselves. Nothing is written in either case."""
    out = tmp_path / "study"
    words = [sys.executable, "-m", "ardiff", "study", "mixture", "--parts", "solvers", "--targets"]
    words += ["random-3", "stiff", "--processes", "1", "--no-plots", "--out", str(out)]
    run = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        # the command, multiprocessing's own tracker of resources, and one that works
        assert waited_for(lambda: len(session(run.pid)) >= 3)
        if ctrl_c:
            os.killpg(run.pid, signal.SIGINT)
        else:
            run.kill()
        _, said = run.communicate(timeout=60)
        assert waited_for(lambda: not session(run.pid))
    finally:
        if session(run.pid):
            os.killpg(run.pid, signal.SIGKILL)
    if ctrl_c:
        assert run.returncode == 130
        assert said.splitlines()[-1] == "ardiff study: interrupted" and "Traceback" not in said
    assert not list(out.iterdir())


def test_methods_that_need_more_calls_are_told(tmp_path):
    _, page = study(tmp_path, "--methods", "rtk-mala", "--budgets", "5", "--processes", "1")
    assert page == "# Sampler study, seed 0\n\nNo method of these makes so few calls.\n"


def test_plots_are_asked_for_before_any_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ardiff.commands.study.find_spec", lambda name: None)
    assert main(["study", "mixture", "--out", str(tmp_path)]) == 2
    assert "need matplotlib: pip install matplotlib" in capsys.readouterr().err
