"""Model folders and training checkpoints: every way in which one can be broken or cut short."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file, save_file

from ardiff._files import replacing, write_json
from ardiff._files.checkpoints import CheckpointError, read_tensors, write_tensors
from ardiff.models.checkpoint import load_model, save_model, shipped_models
from ardiff.models.image_model import ARModel, ModelConfig
from ardiff.training.trainer import CHECKPOINT, TrainConfig, Trainer

SMALL = ModelConfig(
    image_size=8,
    patch_size=4,
    context_width=8,
    context_depth=1,
    context_heads=2,
    head_width=8,
    head_depth=1,
)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    model = ARModel(SMALL)
    model.mean.normal_()
    save_model(model, tmp_path / "model", training={"seed": 7})
    return tmp_path / "model"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_round_trip(tmp_path, dtype):
    model = ARModel(SMALL)
    model.mean.normal_()
    save_model(model, tmp_path / "m", dtype=dtype)
    loaded = load_model(tmp_path / "m")
    assert loaded.config == SMALL and not loaded.training
    assert torch.equal(loaded.mean, model.mean), "mean and std keep float32"
    for name, value in model.state_dict().items():
        got = loaded.state_dict()[name]
        assert got.dtype == torch.float32
        if name not in ("mean", "std"):
            assert torch.equal(got, value.to(dtype).float()), name


def test_saving_leaves_no_temporary_file(folder):
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((folder / "config.json").read_text())["training"] == {"seed": 7}


def test_failed_save_keeps_the_old_file(folder, monkeypatch):
    before = (folder / "model.safetensors").read_bytes()

    real = type(folder).open

    def fail(path, mode="r", *arguments, **options):
        file = real(path, mode, *arguments, **options)
        if mode == "wb":
            with file:
                file.write(b"half")
            raise OSError("disk full")
        return file

    monkeypatch.setattr(type(folder), "open", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(ARModel(SMALL), folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_is_not_finite_is_not_saved(folder, value):
    """It could never be loaded again; the last good one stays, config and weights."""
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    broken = ARModel(OTHER)
    with torch.no_grad():
        broken.head.input_proj.bias[0] = value
    with pytest.raises(CheckpointError, match="not written: head.input_proj.bias holds NaN"):
        save_model(broken, folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_model_that_bfloat16_cannot_hold_is_not_saved(folder):
    before = (folder / "model.safetensors").read_bytes()
    model = load_model(folder)
    model.head.input_proj.bias[0] = torch.finfo(torch.float32).max
    with pytest.raises(CheckpointError, match="not written: head.input_proj.bias holds NaN"):
        save_model(model, folder, dtype=torch.bfloat16)
    assert (folder / "model.safetensors").read_bytes() == before


def test_equal_content_gives_equal_bytes(tmp_path):
    """safetensors' own order of five entries is one of 120 at random: 8 files would differ."""
    metadata = {name: f"{name} \u00fc" for name in "edcba"}
    tensors = {
        "y": torch.arange(3.0),
        "x": torch.ones(2, 2).t(),
        "n": torch.tensor([1], dtype=torch.uint8),
    }
    paths = [tmp_path / f"{n}.safetensors" for n in range(8)]
    for path in paths:
        write_tensors(path, tensors, metadata)
    assert len({path.read_bytes() for path in paths}) == 1
    read, found = read_tensors(paths[0])
    assert found == metadata and read.keys() == tensors.keys()
    assert all(torch.equal(value, tensors[name]) for name, value in read.items())
    assert int.from_bytes(paths[0].read_bytes()[:8], "little") % 8 == 0


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from ardiff._files.checkpoints import write_tensors
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
write_tensors(Path(sys.argv[1]), {"x": torch.ones(1000)}, {})
"""


def test_a_killed_save_keeps_the_old_file_and_the_next_one_tidies(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"x": torch.zeros(3)}, {})
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)])
    assert done.returncode == -signal.SIGKILL
    assert torch.equal(read_tensors(path)[0]["x"], torch.zeros(3))
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"x.safetensors", ".x.safetensors.writing"}
    write_tensors(path, {"x": torch.full((2,), 5.0)}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
    assert read_tensors(path)[0]["x"].tolist() == [5.0, 5.0]


def test_of_two_writers_the_second_waits(tmp_path):
    """What the first has half written is neither removed nor mixed with the second's."""
    path = tmp_path / "x.txt"
    second = threading.Thread(target=write_json, args=(path, "second"))
    with replacing(path) as temporary:
        temporary.write_text("first, ")
        second.start()
        second.join(0.3)
        with temporary.open("a") as file:
            file.write("whole")
        assert temporary.read_text() == "first, whole" and not path.exists()
    second.join()
    assert path.read_text() == '"second"\n'
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_many_writers_leave_one_whole_file(tmp_path):
    path = tmp_path / "x.json"
    texts = [f"{n}" * 10_000 for n in range(8)]

    def write(text):
        for _ in range(5):
            write_json(path, text)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, texts))
    assert json.loads(path.read_text()) in texts
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_device_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "x.safetensors"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_bytes)
        write_tensors(pipe, {"x": torch.arange(3.0)}, {"step": "1"})
        content = read.result()
    assert pipe.is_fifo()
    assert load(content)["x"].tolist() == [0.0, 1.0, 2.0]


OTHER = dataclasses.replace(SMALL, prediction="epsilon")


@pytest.mark.parametrize("moment", range(4))
def test_a_save_cut_short_leaves_config_and_weights_of_one_model(folder, monkeypatch, moment):
    """Same shapes, another prediction: a mixed folder would load and draw garbage.

    The process dies before the old config goes, then before each rename, then not at all.
    """
    torch.manual_seed(1)
    old, new = load_model(folder), ARModel(OTHER)
    left, replace, unlink = [moment], os.replace, type(folder).unlink

    def dying(function):
        def call(path, *arguments, **options):
            if path.name == "config.json" or function is replace:
                if left[0] == 0:
                    raise KeyboardInterrupt
                left[0] -= 1
            return function(path, *arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying(replace))
        patch.setattr(type(folder), "unlink", dying(unlink))
        if moment < 3:
            with pytest.raises(KeyboardInterrupt):
                save_model(new, folder)
        else:
            save_model(new, folder)
    found = load_model(folder)
    expected = old if moment < 2 else new
    assert found.config == expected.config
    weights = found.head.input_proj.weight
    assert torch.equal(weights, expected.head.input_proj.weight)
    assert {p.name for p in folder.iterdir()} <= {"config.json", "model.safetensors"}


def edit_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["model"].update(changes)
    path.write_text(json.dumps(config))


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def forget_config(folder):
    """Weights as other programs write them: without a config of their own."""
    edit_weights(folder, lambda tensors: None)


def edit_only_config(folder, **changes):
    forget_config(folder)
    edit_config(folder, **changes)


def no_config(folder):
    forget_config(folder)
    (folder / "config.json").unlink()


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])


def drop_embedding(tensors):
    del tensors["context.embed.weight"]


def add_tensor(tensors):
    tensors["extra.bias"] = torch.zeros(1)


def poison(tensors):
    tensors["head.input_proj.bias"][0] = float("nan")


BROKEN = {
    "no config": (
        no_config,
        "holds no config.json, and model.safetensors carries no config either",
    ),
    "config of another model": (
        lambda f: edit_config(f, prediction="epsilon"),
        "config.json is not the config that model.safetensors was saved with; copy the whole",
    ),
    "config no object": (
        lambda f: (f / "config.json").write_text("[1]"),
        "expected an object, got",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no model.safetensors"),
    "truncated weights": (truncate, "not a whole safetensors file .* may be truncated"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "not a whole"),
    "a pickle": (lambda f: torch.save({}, f / "model.safetensors"), "not a whole safetensors"),
    "broken json": (lambda f: (f / "config.json").write_text("{"), "config.json: not valid JSON"),
    "binary config": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{"), "not valid JSON"),
    "config without model": (
        lambda f: (f / "config.json").write_text("{}"),
        'expected an object with a "model" object',
    ),
    "unknown setting": (lambda f: edit_config(f, colour=1), "config: unknown colour"),
    "setting of another type": (
        lambda f: edit_config(f, head_width="8"),
        "head_width must be of type int, got '8'",
    ),
    "infinite setting": (
        lambda f: edit_only_config(f, ratio_max=float("inf")),
        "ratio_max must be finite, got inf",
    ),
    "heads that do not divide": (
        lambda f: edit_only_config(f, context_heads=3),
        "context width must be a multiple of its heads, got 8 and 3",
    ),
    "unknown path": (lambda f: edit_config(f, path="moon"), "path must be one of ou"),
    "other width": (
        lambda f: edit_only_config(f, head_width=16),
        r"weight must have shape \[16, 256\] by the config, got \[8, 256\]",
    ),
    "deeper model": (
        lambda f: edit_only_config(f, head_depth=2),
        r"lacks head.res_blocks.1.*, \.\.\.;",
    ),
    "lost tensor": (
        lambda f: edit_weights(f, drop_embedding),
        "lacks context.embed.weight; it belongs to another model",
    ),
    "foreign tensor": (
        lambda f: edit_weights(f, add_tensor),
        "has extra.bias, which this model does not have",
    ),
    "integer weights": (
        lambda f: edit_weights(f, lambda t: t.update(mean=t["mean"].int())),
        "mean must be floating-point, got int32",
    ),
    "NaN weights": (
        lambda f: edit_weights(f, poison),
        "head.input_proj.bias holds NaN or infinite values",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_folders_are_named(folder, case):
    breaking, message = BROKEN[case]
    breaking(folder)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


HOSTILE = {
    "image_size": 16 * 625,
    "channels": 10**4,
    "context_width": 10**4,
    "context_depth": 10**6,
    "context_heads": 10**9,
    "head_width": 10**9,
    "head_depth": 10**6,
}


@pytest.mark.parametrize("size", [None, 2**63, 10**30])
@pytest.mark.parametrize("name", HOSTILE)
def test_sizes_that_the_weights_cannot_have_make_no_module(folder, monkeypatch, name, size):
    """What the config claims is not built: no layer is made, be it on the meta device."""
    size = HOSTILE[name] if size is None else size - size % 40
    edit_only_config(folder, **{name: size, "patch_size": 4})
    if name == "context_width":
        edit_config(folder, context_heads=size // 20)
    monkeypatch.setattr(torch.nn.Linear, "__init__", lambda *_, **__: pytest.fail("a layer made"))
    message = f"{name} {size} does not fit model.safetensors, which holds 40 tensors of"
    if name == "context_heads":
        message = "context width must be a multiple of its heads"
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


def test_other_sizes_are_compared_before_they_are_allocated(folder, monkeypatch):
    """Sizes below every bound: the modules are made on the meta device, where they take nothing."""
    edit_only_config(folder, head_width=48)
    made, reset = set(), torch.nn.Linear.reset_parameters

    def seen(layer):
        made.add(layer.weight.device.type)
        reset(layer)

    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", seen)
    with pytest.raises(CheckpointError, match=r"must have shape \[48, 256\] by the config"):
        load_model(folder)
    assert made == {"meta"}


def test_a_loaded_model_is_a_copy_in_float32_whatever_the_default(folder):
    try:
        torch.set_default_dtype(torch.float64)
        model = load_model(folder)
    finally:
        torch.set_default_dtype(torch.float32)
    stored = {n: t.clone() for n, t in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").write_bytes(b"")
    assert stored.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32 and value.device.type == "cpu"
        assert torch.equal(value, stored[name]), name


def test_loading_imports_no_sympy():
    """What initialises tensors on the meta device imports it, which takes longer than torch."""
    code = "import sys, ardiff; ardiff.load('sun-shadow'); sys.exit('sympy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_messages_do_not_repeat_a_long_config(folder):
    for path, expected in (("x" * 10**6, "path must be one of"), ("\0", "path must be one of")):
        edit_only_config(folder, path=path)
        with pytest.raises(CheckpointError, match=expected) as caught:
            load_model(folder)
        assert len(str(caught.value)) < 1000
    (folder / "config.json").write_text(" " * 2**22 + "{}")
    with pytest.raises(CheckpointError, match="expected a config of at most 4,194,304 bytes"):
        load_model(folder)


def test_weights_carry_their_config(folder):
    (folder / "config.json").unlink()
    assert load_model(folder).config == SMALL


RUN = TrainConfig(
    images=16, batch=4, steps=4, width=8, depth=1, context_width=8, context_depth=1, seed=3
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A run of two steps, as `Trainer.save` wrote it."""
    path = tmp_path_factory.mktemp("run") / CHECKPOINT
    trainer = Trainer(RUN)
    for _ in range(2):
        trainer.advance()
    trainer.save(path)
    return path


def without(name):
    return lambda tensors, metadata: tensors.pop(name)


def with_tensor(name, value):
    return lambda tensors, metadata: tensors.update({name: value(tensors.get(name))})


def with_metadata(**values):
    return lambda tensors, metadata: metadata.update(values)


def no_optimizer(tensors, metadata):
    for name in [n for n in tensors if n.startswith("optimizer.")]:
        del tensors[name]


def nan_like(tensor):
    return torch.full_like(tensor, float("nan"))


BROKEN_RUNS = {
    "no generator": (without("generator"), "is no training checkpoint"),
    "no optimizer": (no_optimizer, r"\(optimizer\) lacks 0.exp_avg and \d+ more at step 2"),
    "one moment gone": (without("optimizer.3.exp_avg_sq"), "lacks 3.exp_avg_sq at step 2"),
    "moment of another kind": (
        with_tensor("optimizer.0.max_exp_avg_sq", lambda _: torch.zeros(1)),
        "has unexpected 0.max_exp_avg_sq",
    ),
    "moment of no parameter": (
        with_tensor("optimizer.999.step", lambda _: torch.zeros(())),
        "has unexpected 999.step",
    ),
    "moment without index": (
        with_tensor("optimizer.x", lambda _: torch.zeros(())),
        "has unexpected x",
    ),
    "moment of another shape": (
        with_tensor("optimizer.0.exp_avg", lambda t: t.flatten()[:-1].clone()),
        r"0.exp_avg must be float32 \[.*\], got float32",
    ),
    "moment of another type": (
        with_tensor("optimizer.0.exp_avg", lambda t: t.double()),
        "0.exp_avg must be float32 .* got float64",
    ),
    "moment NaN": (with_tensor("optimizer.0.exp_avg", nan_like), "0.exp_avg holds NaN"),
    "moment negative": (
        with_tensor("optimizer.0.exp_avg_sq", lambda t: t - 1),
        "0.exp_avg_sq must not be negative",
    ),
    "optimizer at another step": (
        with_tensor("optimizer.0.step", lambda t: t + 1),
        "0.step must be 2, got 3",
    ),
    "average NaN": (with_tensor("average.mean", nan_like), r"\(average\): mean holds NaN"),
    "average of another shape": (
        with_tensor("average.mean", lambda t: t[:1].clone()),
        r"\(average\): mean must have shape",
    ),
    "weights gone": (without("model.mean"), r"\(model\) lacks mean"),
    "foreign tensor": (with_tensor("extra", lambda _: torch.zeros(1)), "has extra, which no"),
    "short generator": (
        with_tensor("generator", lambda t: t[:-8].clone()),
        r"generator must be uint8 \[5056\], got uint8 \[5048\]",
    ),
    "generator of numbers": (
        with_tensor("generator", lambda t: t.float()),
        "generator must be uint8 .* got float32",
    ),
    "generator of ones": (
        with_tensor("generator", torch.ones_like),
        "generator holds no valid state",
    ),
    "step no number": (with_metadata(step="abc"), "step must be an integer, got 'abc'"),
    "step a fraction": (with_metadata(step="1.5"), "step must be an integer, got '1.5'"),
    "step negative": (with_metadata(step="-1"), r"step must be in \[0, 4\], got -1"),
    "step past the end": (with_metadata(step="5"), r"step must be in \[0, 4\], got 5"),
    "skipped no number": (with_metadata(skipped="x"), "skipped must be an integer, got 'x'"),
    "skipped past the steps": (with_metadata(skipped="3"), r"skipped must be in \[0, 2\], got 3"),
    "skipped against the optimizer": (with_metadata(skipped="1"), "0.step must be 1, got 2"),
    "config junk": (with_metadata(config="{"), "its config is not valid JSON"),
    "config a list": (with_metadata(config="[1]"), "its config must be an object, got list"),
    "config nested deeply": (with_metadata(config="[" * 10**5), "its config is not valid JSON"),
    "extended from words": (
        with_metadata(config=json.dumps(RUN.identity() | {"extended_from": "moon"})),
        "its extended_from must be rising numbers of at most 2 steps, got moon",
    ),
    "extended from later": (
        with_metadata(config=json.dumps(RUN.identity() | {"extended_from": [3]})),
        r"its extended_from must be rising numbers of at most 2 steps, got \[3\]",
    ),
    "config of another run": (with_metadata(config="{}"), "is of another run: batch was None"),
}


@pytest.mark.parametrize("case", BROKEN_RUNS)
def test_broken_runs_are_named_and_change_nothing(checkpoint, tmp_path, case):
    breaking, message = BROKEN_RUNS[case]
    tensors = load_file(checkpoint)
    with safe_open(checkpoint, framework="pt") as file:
        metadata = file.metadata()
    breaking(tensors, metadata)
    save_file(tensors, tmp_path / CHECKPOINT, metadata)
    trainer = Trainer(RUN)
    before = [t.clone() for t in trainer.model.state_dict().values()]
    generator = trainer.generator.get_state()
    with pytest.raises(CheckpointError, match=message) as caught:
        trainer.restore(tmp_path / CHECKPOINT)
    assert len(str(caught.value).splitlines()) == 1
    assert all(map(torch.equal, trainer.model.state_dict().values(), before))
    assert torch.equal(trainer.generator.get_state(), generator)
    assert trainer.step == 0 and not trainer.optimizer.state_dict()["state"]


def test_an_unbroken_run_is_taken_up(checkpoint, tmp_path):
    trainer = Trainer(RUN)
    trainer.restore(checkpoint)
    assert trainer.step == 2
    trainer.save(tmp_path / CHECKPOINT)
    saved = load_file(tmp_path / CHECKPOINT)
    assert all(torch.equal(value, saved[name]) for name, value in load_file(checkpoint).items())
    fresh = Trainer(RUN)
    fresh.save(tmp_path / CHECKPOINT)
    trainer.restore(tmp_path / CHECKPOINT)
    assert trainer.step == 0 and not trainer.optimizer.state_dict()["state"]


def test_a_checkpoint_from_before_skipped_steps_were_counted_is_taken_up(checkpoint, tmp_path):
    with safe_open(checkpoint, framework="pt") as file:
        metadata = file.metadata()
    del metadata["skipped"]
    save_file(load_file(checkpoint), tmp_path / CHECKPOINT, metadata)
    trainer = Trainer(RUN)
    trainer.restore(tmp_path / CHECKPOINT)
    assert (trainer.step, trainer.skipped) == (2, 0)


def test_a_run_taken_up_does_not_hold_its_file(checkpoint, tmp_path):
    """A mapped file that another program cuts short kills the process that reads it."""
    path = tmp_path / "taken.safetensors"
    path.write_bytes(checkpoint.read_bytes())
    trainer = Trainer(RUN)
    trainer.restore(path)
    assert str(path) not in Path("/proc/self/maps").read_text()
    path.write_bytes(b"")
    expected = load_file(checkpoint)
    for index, entry in trainer.optimizer.state_dict()["state"].items():
        for name, value in entry.items():
            assert torch.equal(value, expected[f"optimizer.{index}.{name}"])


def test_unknown_names_list_the_shipped_ones(tmp_path):
    with pytest.raises(CheckpointError, match="no model 'moon'.*sun-shadow.*or a folder"):
        load_model("moon")
    with pytest.raises(CheckpointError, match="expected one of the shipped names"):
        load_model(tmp_path / "nowhere")
    assert "sun-shadow" in shipped_models()
