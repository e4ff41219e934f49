"""The command line: its commands, their files, and one clear line for each kind of bad input."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from ardiff import StepTable, default_solver
from ardiff._files import replacing, write_json
from ardiff.ar.sampler import ARSampler, load
from ardiff.commands._image_grid import image_grid
from ardiff.commands._parser import build_parser, main, select_device
from ardiff.models.checkpoint import save_model
from ardiff.planning.plan_file import SamplePlan, write_plan
from ardiff.training.trainer import Trainer
from tests._support.small_models import small_model

SAMPLE = ["sample", "--n", "2", "--steps", "8"]


def test_module_entry_names_every_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ardiff", "--help"], capture_output=True, text=True, check=True
    )
    for command in ("bench", "comfyui", "doctor", "learn", "plan", "sample", "train"):
        assert command in done.stdout


def test_doctor_gives_a_reason_for_each_unusable_backend(tmp_path: Path, capsys) -> None:
    target = tmp_path / "doctor.json"
    assert main(["doctor", "--json", str(target)]) == 0
    found = json.loads(target.read_text())
    for row in found["backends"]:
        assert row["reason"] == "" or len(row["reason"]) > 10
    ops = {row["op"] for row in found["backends"]}
    assert {"uld_step", "uld_step_", "diffusion_step", "philox_normal"} <= ops
    for op in ops:
        chosen = [r for r in found["backends"] if r["op"] == op and r["chosen"]]
        assert [r["device"] for r in chosen].count("cpu") == 1
        assert all(r["reason"] == "" for r in chosen)
    text = capsys.readouterr().out
    assert found["packages"]["torch"] in text
    for row in found["backends"]:
        assert row["reason"] in text


def test_doctor_names_the_instruction_set_and_the_products(tmp_path: Path, capsys) -> None:
    from ardiff_kernels import testing
    from ardiff_kernels.dispatch import cpu

    target = tmp_path / "doctor.json"
    for way in testing.cpu_dots_here():
        with testing.cpu_dots(way):
            assert main(["doctor", "--json", str(target)]) == 0
        text = capsys.readouterr().out
        assert f"C++ loops use {cpu.current_isa()}, products of packed weights {way}" in text
        found = json.loads(target.read_text())["cpu"]
        assert found["products"] == way
        where = found["pytorch_products_from"]
        assert set(where) <= {"float32", "bfloat16", "int8"}
        for dtype, rows in where.items():
            assert f"{dtype} from {rows} rows on" in text


def test_sample_writes_a_grid_and_its_figures(tmp_path: Path, capsys) -> None:
    picture, figures = tmp_path / "new" / "grid.png", tmp_path / "figures.json"
    command = [*SAMPLE, "--solver", "ddpm", "--out", str(picture), "--json", str(figures)]
    assert main([*command, "--seed", "3"]) == 0
    with Image.open(picture) as image:
        assert image.width > 2 * 32 and image.height > 32
        first = image.tobytes()
    found = json.loads(figures.read_text())
    assert found["calls"] == 4 * 8
    assert found["seed"] == 3
    assert str(picture) in capsys.readouterr().out
    assert main([*command, "--seed", "3"]) == 0
    with Image.open(picture) as image:
        assert image.tobytes() == first
    assert main([*command, "--seed", "4"]) == 0
    with Image.open(picture) as image:
        assert image.tobytes() != first


def test_sample_takes_the_default_solver_of_its_steps(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = ["sample", "--n", "1", "--steps", "16", "--out", str(tmp_path / "x.png")]
    assert main([*command, "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())
    assert found["solver"] == default_solver(16) and found["calls"] == 4 * 16


def test_learn_writes_a_table_that_runs(tmp_path: Path, capsys) -> None:
    table, figures = tmp_path / "new" / "mine.table.json", tmp_path / "figures.json"
    small = ["--steps", "3", "--runs", "8", "--images", "1", "--teacher-steps", "12"]
    command = ["learn", *small, "--iterations", "2", "--out", str(table), "--json", str(figures)]
    assert main([*command, "--plot", str(tmp_path / "rows.svg"), "--seed", "-3"]) == 0
    found, said = json.loads(figures.read_text()), capsys.readouterr().out
    assert len(found["rows"]) == 3 and found["error"] <= found["start_error"]
    assert str(table) in said and found["start"] in said
    assert (tmp_path / "rows.svg").read_text().startswith("<svg")
    made = StepTable.load(table)
    assert made.calls == 3 and made.prediction == load("sun-shadow").prediction


def test_learn_judges_images(tmp_path: Path, capsys) -> None:
    table, figures = tmp_path / "mine.table.json", tmp_path / "figures.json"
    command = ["learn", "--judge", "sun-shadow", "--steps", "4", "--images", "60"]
    command += ["--iterations", "1", "--out", str(table), "--json", str(figures)]
    assert main(command) == 0
    found, said = json.loads(figures.read_text()), capsys.readouterr().out
    assert found["start"] == min(found["others"], key=found["others"].get)
    assert found["tables"] == 4 * 4 + 10 + 2 * 8 and str(table) in said
    assert found["learned"] or "no gain was found" in said
    made = StepTable.load(table)
    assert made.calls == 4 and made.path == load("sun-shadow").path
    assert main([*command, "--plot", str(tmp_path / "rows.svg")]) == 2
    assert "--plot: draws tables fitted to the ODE alone" in capsys.readouterr().err


PLAN = ["plan", "--path", "edm", "--dim", "64", "--L", "2"]


def picture(arguments: list[str], out: Path) -> bytes:
    assert main(["sample", "--n", "3", "--seed", "5", "--out", str(out), *arguments]) == 0
    with Image.open(out) as image:
        return image.tobytes()


def test_a_plan_draws_what_its_options_spelled_out_do(tmp_path: Path) -> None:
    plan, figures, out = (tmp_path / n for n in ("new/my.plan.json", "x.json", "x.png"))
    command = ["plan", "--model", "sun-shadow", "--L", "5", "--calls", "6", "--out", str(plan)]
    assert main([*command, "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())
    assert found["out"] == str(plan) and found["setting"]["patches"] == 4
    planned, chosen = picture(["--config", str(plan)], out), found["sample"]
    grid = {"grid": "log-snr", "ratio_max": 40.0, "ratio_min": 0.002, **chosen["options"]}
    sampler = ARSampler(load("sun-shadow"), chosen["solver"], 6, **grid)
    assert planned == image_grid(sampler.sample(3, seed=5).images).tobytes()
    assert planned != picture(["--solver", "heun", "--steps", "6"], out)
    own = SamplePlan(
        None, "vp-cosine", "rtk-uld", 12, {"grid": "uniform", "ratio_min": 0.1, "stages": 3}
    )
    write_plan(plan, own)
    spelled = ["--solver", "rtk-uld", "--steps", "12", "--stages", "3"]
    spelled += ["--grid", "uniform", "--ratio-max", "40", "--ratio-min", ".1"]
    assert picture(["--config", str(plan)], out) == picture(spelled, out)
    assert picture(["--config", str(plan), "--model", "sun-shadow"], out) == picture(spelled, out)


def test_plan_prints_what_it_writes(tmp_path: Path, capsys) -> None:
    target = tmp_path / "figures.json"
    assert main([*PLAN, "--calls", "16", "--score", "exact", "--json", str(target)]) == 0
    found, said = json.loads(target.read_text()), capsys.readouterr().out
    assert f"use: {found['recommendation']['solver']}, 16 steps" in said
    assert found["out"] is None and found["condition_number"] == pytest.approx(3.0)


@pytest.mark.parametrize("seed", [-5, -(2**63), 2**63 - 1])
def test_sample_and_train_take_every_int64_seed(tmp_path: Path, seed: int) -> None:
    small = ["--images", "16", "--batch", "8", "--steps", "1", "--width", "32", "--depth", "1"]
    model, figures = str(tmp_path / "model"), tmp_path / "figures.json"
    assert main(["train", *small, "--out", model, "--seed", str(seed)]) == 0
    command = ["sample", "--n", "1", "--steps", "4", "--solver", "ddpm", "--model", model]
    out = ["--out", str(tmp_path / "grid.png"), "--json", str(figures)]
    assert main([*command, *out, "--seed", str(seed)]) == 0
    assert json.loads(figures.read_text())["seed"] == seed
    drawn = ARSampler(load(model), solver="ddpm", steps=4).sample(1, seed=seed).images
    with Image.open(tmp_path / "grid.png") as image:
        assert image.tobytes() == image_grid(drawn).tobytes()


@pytest.mark.parametrize(
    ("device", "current"), [("cuda", []), ("cuda:0", [0]), ("cuda:1", [1]), ("cpu", [])]
)
def test_a_numbered_device_becomes_the_current_one(monkeypatch, device, current) -> None:
    made = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", lambda device: made.append(device.index))
    assert select_device(device) == device.partition(":")[0]
    assert made == current
    with pytest.raises(ValueError, match="cuda:2: torch sees 2 of them here, numbered from cuda:0"):
        select_device("cuda:2")


def test_sample_measures_its_images(tmp_path: Path, capsys) -> None:
    target = tmp_path / "figures.json"
    command = [*SAMPLE, "--measure", "--out", str(tmp_path / "grid.png"), "--json", str(target)]
    assert main(command) == 0
    found = json.loads(target.read_text())
    assert 0 <= found["detection"] <= 1
    assert found["r2"] is None, "two images give no R^2: NaN is written as null"
    assert f"detection {found['detection']:.4f}, r2 nan" in capsys.readouterr().out


def test_bench_writes_the_json_form(tmp_path: Path, capsys) -> None:
    target = tmp_path / "bench.json"
    command = ["bench", "ops", "--case", "philox_normal/64/float32", "--rivals", "eager"]
    assert main([*command, "--rounds", "2", "--json", str(target)]) == 0
    report = json.loads(target.read_text())
    assert set(report) == {"environment", "rows"}
    keys = {"suite", "case", "rival", "metric", "value", "unit", "low", "high"}
    assert all(set(row) == keys for row in report["rows"])
    assert report["rows"][0]["metric"] == "error_over_tolerance"
    speedup = [row for row in report["rows"] if row["metric"] == "speedup"]
    assert [row["rival"] for row in speedup] == ["eager"]
    assert "speedup" in capsys.readouterr().out


def test_train_makes_a_model_that_sample_takes(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    small = ["--images", "64", "--batch", "8", "--steps", "2", "--width", "32", "--depth", "1"]
    assert main(["train", *small, "--out", str(folder), "--json", str(tmp_path / "t.json")]) == 0
    assert json.loads((tmp_path / "t.json").read_text())["steps"] == 2
    out = str(tmp_path / "grid.png")
    assert main([*SAMPLE, "--model", str(folder), "--out", out]) == 0


def test_train_extends_a_finished_run(tmp_path: Path, capsys) -> None:
    small = ["--images", "16", "--batch", "8", "--width", "8", "--depth", "1"]
    command = ["train", *small, "--out", str(tmp_path / "model")]
    assert main([*command, "--steps", "2"]) == 0
    capsys.readouterr()
    assert main([*command, "--steps", "2", "--resume"]) == 0
    said = f"2 steps, all done before; a larger --steps extends the run: {tmp_path / 'model'}\n"
    assert capsys.readouterr().out == said
    assert main([*command, "--steps", "3", "--resume"]) == 0
    assert re.match(r"3 steps, loss \d+\.\d{4}, ", capsys.readouterr().out)


@pytest.mark.parametrize(
    "command", ["bench", "comfyui", "doctor", "learn", "plan", "sample", "train"]
)
def test_every_option_has_help(command: str) -> None:
    (commands,) = (a for a in build_parser()._actions if isinstance(a.choices, dict))
    for action in commands.choices[command]._actions:
        assert action.help and len(action.help) > 8 and not action.help.startswith("default None")
    text = " ".join(commands.choices[command].format_help().split())
    if command == "train":
        assert "--lr FLOAT peak learning rate; linear warm-up over 60 steps, cosine decay" in text
        assert "last 60% (default 0.001)" in text
        assert "--resume go on from the checkpoint in out" in text


BAD = {
    "no command": ([], "required: COMMAND"),
    "unknown command": (["smaple"], "smaple"),
    "unknown option": (["doctor", "--verbose"], "--verbose"),
    "seed no number": (["doctor", "--seed", "x"], "--seed"),
    "seed too small": ([*SAMPLE, "--seed", str(-(2**63) - 1)], "the seed must fit in int64"),
    "seed too large for train": (["train", "--seed", "9" * 23], "the seed must fit in int64"),
    "seed too large for bench": (
        ["bench", "ops", "--seed", "9" * 23],
        "the seed must fit in int64",
    ),
    "seed too large for sample": ([*SAMPLE, "--seed", str(2**63)], "the seed must fit in int64"),
    "a table with another ending": (["learn", "--out", "{tmp}/x.txt"], "ending in .json"),
    "no images to learn from": (["learn", "--images", "0"], "--images: expected at least 1"),
    "guidance without a null context": (["learn", "--guidance", "2"], "context dropout"),
    "json is a folder": (["doctor", "--json", "{tmp}"], "is a folder"),
    "json below a file": (["doctor", "--json", "{file}/x.json"], "cannot write"),
    "unknown model": ([*SAMPLE, "--model", "moon"], "no model 'moon'"),
    "model folder empty": ([*SAMPLE, "--model", "{tmp}"], "holds no model.safetensors"),
    "unknown solver": ([*SAMPLE, "--solver", "eulr"], "unknown solver 'eulr'"),
    "no steps": (["sample", "--n", "2", "--steps", "0"], "steps"),
    "too few steps": (["sample", "--n", "2", "--steps", "2", "--solver", "rtk-uld"], "stages"),
    "no images": (["sample", "--n", "0"], "--n: expected at least 1, got 0"),
    "negative batch": ([*SAMPLE, "--batch", "-3"], "batch must be positive"),
    "temperature NaN": ([*SAMPLE, "--temperature", "nan"], "temperature must be finite"),
    "guidance without null": ([*SAMPLE, "--guidance", "2"], "null context"),
    "stages of ddpm": ([*SAMPLE, "--solver", "ddpm", "--stages", "3"], "'stages'"),
    "unknown device": ([*SAMPLE, "--device", "tpu"], "expected cpu or cuda, or cuda:1 and so on"),
    "device without kernels": ([*SAMPLE, "--device", "meta"], "and so on, got 'meta'"),
    "device that is not there": ([*SAMPLE, "--device", "cuda:99"], "--device cuda:99: torch"),
    "device of a suite": (["bench", "ops", "--device", "cuda:99"], "--device cuda:99: torch"),
    "processor that is not there": ([*SAMPLE, "--device", "cpu:3"], "torch sees 1 of them here"),
    "unknown backend": ([*SAMPLE, "--backend", "fast"], "unknown backend 'fast'"),
    "backend elsewhere": ([*SAMPLE, "--backend", "cuda"], "serves cuda tensors only"),
    "picture suffix": ([*SAMPLE, "--out", "{tmp}/grid.jpg"], "ending in .png"),
    "picture is a folder": ([*SAMPLE, "--out", "{tmp}"], "is a folder"),
    "measure of another model": (
        [*SAMPLE, "--measure", "--model", "{small}"],
        "--measure: Sun/Shadow images are 3 x 32 x 32, this model makes 3 x 8 x 8",
    ),
    "plan of no problem": (["plan", "--calls", "8"], "path is missing"),
    "plan without a budget": (PLAN, "a plan needs a budget"),
    "plan of no accuracy": ([*PLAN, "--accuracy", "1"], "above 0 and below 1, got 1.0"),
    "plan of no dimension": (
        ["plan", "--path", "ou", "--dim", "0", "--L", "1", "--calls", "8"],
        "dim must be an integer of 1 or more, got 0",
    ),
    "plan with another ending": (
        [*PLAN, "--calls", "8", "--out", "{tmp}/x.json"],
        "--out: expected a name ending in .plan.json",
    ),
    "plan is a folder": ([*PLAN, "--calls", "8", "--out", "{tmp}"], "is a folder"),
    "a plan and its figures in one file": (
        [*PLAN, "--calls", "8", "--out", "{tmp}/x.plan.json", "--json", "{tmp}/./x.plan.json"],
        "is the file of --out, expected another",
    ),
    "solver beside a plan": (
        ["sample", "--config", "x", "--solver", "ddim"],
        "--config: a plan fixes the sampler; leave --solver out",
    ),
    "end of a grid beside a plan": (
        ["sample", "--config", "x", "--ratio-max", "9"],
        "leave --ratio-max out",
    ),
    "guidance beside a plan": (
        ["sample", "--config", "x", "--guidance", "2"],
        "leave --guidance out",
    ),
    "a table beside a plan": (
        ["sample", "--table", "x", "--config", "y"],
        "--table: a table fixes the solver; leave --config out",
    ),
    "no plan there": (["sample", "--config", "{tmp}/x.plan.json"], "no such plan file"),
    "no plan in it": (["sample", "--config", "{file}"], "not a plan file, or a damaged one"),
    "plan of another path": (["sample", "--config", "{plan}"], "the plan is for path edm"),
    "model beside its plan": (
        ["sample", "--config", "{model-plan}", "--model", "sun-shadow"],
        "--config: the plan is for model moon; leave --model out",
    ),
    "no ComfyUI": (["comfyui", "{tmp}"], "expected the folder of ComfyUI, with custom_nodes in it"),
    "unknown suite": (["bench", "opps"], "unknown suite 'opps': expected one of"),
    "unknown case": (["bench", "ops", "--case", "gelu/64/float32"], "unknown case"),
    "case without size": (["bench", "ops", "--case", "uld_step/float32"], "expected <op>/"),
    "case dtype": (["bench", "ops", "--case", "uld_step/64/int8"], "dtype one of"),
    "no rounds": (["bench", "ops", "--rounds", "0"], "rounds: expected at least 1"),
    "unknown rival": (
        ["bench", "ops", "--case", "philox_normal/64/float32", "--rivals", "jax"],
        "unknown rival 'jax'",
    ),
    "no data": (["train", "--data", "{tmp}/nowhere"], "data: no folder"),
    "too little data": (["train", "--data", "{tmp}"], "holds 0 images"),
    "unknown variant": (["train", "--variant", "rain"], "variant must be one of"),
    "no training images": (["train", "--images", "0"], "images must be positive"),
    "resume from nothing": (["train", "--resume", "--out", "{tmp}", "--images", "8"], "no such"),
    "train out is a file": (["train", "--out", "{file}"], "is a file, expected a folder"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_status_2(name: str, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, expected = BAD[name]
    (tmp_path / "file").write_text("x")
    if any("{small}" in argument for argument in arguments):
        save_model(small_model(), tmp_path / "small")
    write_plan(tmp_path / "edm.plan.json", SamplePlan(None, "edm", "ddim", 4))
    write_plan(tmp_path / "moon.plan.json", SamplePlan("moon", "edm", "ddim", 4))
    places = {
        "{plan}": str(tmp_path / "edm.plan.json"),
        "{model-plan}": str(tmp_path / "moon.plan.json"),
        "{small}": str(tmp_path / "small"),
        "{tmp}": str(tmp_path),
        "{file}": str(tmp_path / "file"),
    }
    for mark, place in places.items():
        arguments = [argument.replace(mark, place) for argument in arguments]
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err.strip()
    assert status == 2
    assert expected in error
    assert len(error.splitlines()) == 1
    assert error.startswith("ardiff")


def test_bench_without_a_checkout_says_so(tmp_path: Path, monkeypatch, capsys) -> None:
    from ardiff.commands import bench

    monkeypatch.setattr(bench, "_ROOT", tmp_path)
    assert main(["bench", "ops"]) == 2
    assert "checkout of the repository" in capsys.readouterr().err


def test_a_mistake_in_the_code_is_not_reported_as_bad_input(monkeypatch) -> None:
    from ardiff.commands import doctor

    def broken(args):
        raise KeyError("a bug")

    monkeypatch.setattr(doctor, "run", broken)
    with pytest.raises(KeyError):
        main(["doctor"])


def test_a_refused_command_touches_no_file(tmp_path: Path, capsys) -> None:
    empty, link, pipe = (tmp_path / name for name in ("empty.json", "link.json", "pipe.json"))
    empty.touch()
    link.symlink_to(tmp_path / "nowhere.json")
    os.mkfifo(pipe)
    before = empty.stat()
    for target in (empty, link, pipe, Path(os.devnull), tmp_path / "new.json"):
        assert main(["sample", "--n", "0", "--json", str(target)]) == 2
        assert "--n: expected at least 1" in capsys.readouterr().err
    assert empty.stat() == before
    assert link.is_symlink() and not link.exists()
    assert pipe.is_fifo() and Path(os.devnull).is_char_device()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty.json", "link.json", "pipe.json"]


def test_results_go_through_links_and_to_devices(tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "target.json")
    for _ in range(2):
        assert main(["doctor", "--json", str(link)]) == 0
        assert link.is_symlink() and "ardiff" in json.loads((tmp_path / "target.json").read_text())
    assert main(["doctor", "--json", os.devnull]) == 0
    assert Path(os.devnull).is_char_device()


def ardiff(*arguments: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "ardiff", *arguments],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options},
    )


@pytest.mark.parametrize("where", ["json", "stdout"])
def test_a_full_device_is_one_line_and_status_1(where: str) -> None:
    with open("/dev/full", "w") as full:
        if where == "json":
            process = ardiff("doctor", "--json", "/dev/full")
        else:
            process = ardiff("doctor", stdout=full)
        _, error = process.communicate()
    name = "/dev/full: " if where == "json" else ""
    assert (process.returncode, error) == (1, f"ardiff doctor: {name}No space left on device\n")


@pytest.mark.parametrize(
    ("command", "option"),
    [(["sample"], "--out"), (["train", "--width", "8", "--depth", "1", "--images", "8"], "out")],
)
def test_no_room_is_found_before_the_work(command, option, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(ARSampler, "sample", lambda *_, **__: pytest.fail("work began"))
    monkeypatch.setattr(Trainer, "advance", lambda _: pytest.fail("work began"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The folder test passes for train, whose checkpoint is larger.
    limit = 1000 if command == ["sample"] else 2**20
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        status = main([*command, "--out", str(tmp_path / "new" / "grid.png")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 1
    error = capsys.readouterr().err
    room = r"1,048,576" if command == ["sample"] else r"[1-9]\d?,\d{3},\d{3}"
    expected = rf"{option}: {room} bytes of room are needed: File too large"
    assert re.fullmatch(rf"ardiff {command[0]}: {tmp_path}/new\S*: {expected}\n", error)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_disk_that_fills_up_leaves_the_last_checkpoint(tmp_path, monkeypatch, capsys) -> None:
    folder = tmp_path / "run"
    small = ["--images", "16", "--batch", "8", "--width", "8", "--depth", "1", "--steps", "4"]
    limits, limit = [], resource.getrlimit(resource.RLIMIT_FSIZE)
    save = Trainer.save

    def filling(self, path):
        if self.step == 4:
            limits.append((path.read_bytes(), path.stat().st_size // 2))
            resource.setrlimit(resource.RLIMIT_FSIZE, (limits[0][1], limit[1]))
        save(self, path)

    monkeypatch.setattr(Trainer, "save", filling)
    try:
        status = main(["train", *small, "--checkpoint-every", "2", "--out", str(folder)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    error = capsys.readouterr().err.splitlines()[-1]
    assert status == 1 and "File too large" in error
    assert error.startswith(f"ardiff train: {folder / 'checkpoint.safetensors'}: ")
    assert (folder / "checkpoint.safetensors").read_bytes() == limits[0][0]
    assert [p.name for p in folder.iterdir()] == ["checkpoint.safetensors"]
    monkeypatch.undo()
    assert main(["train", *small, "--out", str(folder), "--resume"]) == 0


def test_ctrl_c_is_one_line_and_status_130(tmp_path: Path) -> None:
    """A real signal, while a run trains whose first checkpoint is written."""
    small = ["--images", "16", "--batch", "8", "--width", "8", "--depth", "1", "--steps", "9999999"]
    process = ardiff("train", *small, "--checkpoint-every", "20", "--out", str(tmp_path / "run"))
    kept = tmp_path / "run" / "checkpoint.safetensors"
    while not kept.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130
    assert error.splitlines()[-1] == f"ardiff train: interrupted: --resume goes on from {kept}"
    assert "Traceback" not in error
    assert list(kept.parent.iterdir()) == [kept]


@pytest.mark.parametrize("place", ["build_parser", "write_json"])
def test_ctrl_c_before_and_after_the_work(place, tmp_path, monkeypatch, capsys) -> None:
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"ardiff.commands._parser.{place}", interrupted)
    assert main(["doctor", "--json", str(tmp_path / "x.json")]) == 130
    command = "ardiff" if place == "build_parser" else "ardiff doctor"
    assert capsys.readouterr().err == f"{command}: interrupted\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1", "link"])
def test_json_on_standard_output_keeps_the_file_behind_it(tmp_path: Path, capfd, name: str) -> None:
    """The shell's file holds what was there and the JSON, in order, and is the same file."""
    target = tmp_path / "log"
    if name == "link":
        name = str(tmp_path / "link")
        Path(name).symlink_to("/dev/stdout")
    with target.open("w+") as file:
        file.write("before\n")
        file.flush()
        kept = os.dup(1)
        try:
            os.dup2(file.fileno(), 1)
            assert main(["doctor", "--json", name]) == 0
            os.write(1, b"after\n")
        finally:
            os.dup2(kept, 1)
            os.close(kept)
        first, *lines, last = target.read_text().splitlines()
        assert (first, last) == ("before", "after")
        assert "backends" in json.loads("\n".join(lines))
        assert os.fstat(file.fileno()).st_ino == target.stat().st_ino
    assert "torch" in capfd.readouterr().err, "what is meant for people goes to standard error"
    assert {p.name for p in tmp_path.iterdir()} <= {"log", "link"}
    assert not Path("-").exists()


def test_a_descriptor_that_is_not_open_for_writing_is_refused(tmp_path: Path, capsys) -> None:
    (tmp_path / "input").write_text("kept")
    with (tmp_path / "input").open() as file:
        number = file.fileno()
        assert main(["sample", "--json", f"/dev/fd/{number}"]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert (tmp_path / "input").read_text() == "kept"
    assert main(["sample", "--json", f"/dev/fd/{number}"]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    write_json(target, {"x": [1.5, float("nan"), (float("inf"), "a")]})
    assert json.loads(target.read_text()) == {"x": [1.5, None, [None, "a"]]}
    before = target.read_bytes()
    with pytest.raises(TypeError):
        write_json(target, {"x": object()})
    with pytest.raises(KeyboardInterrupt), replacing(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["figures.json"]
