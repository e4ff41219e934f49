"""Model folders: the round trip, and every way in which one can be broken."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ardiff.models.ar_model import ARModel, ModelConfig
from ardiff.models.checkpoint import CheckpointError, load_model, save_model, shipped_models

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

    def fail(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("ardiff.models.checkpoint.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(ARModel(SMALL), folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert len(list(folder.iterdir())) == 2


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
    "no config": (lambda f: (f / "config.json").unlink(), "holds no config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no model.safetensors"),
    "truncated weights": (truncate, "not a whole safetensors file .* may be truncated"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "not a whole"),
    "a pickle": (lambda f: torch.save({}, f / "model.safetensors"), "not a whole safetensors"),
    "broken json": (lambda f: (f / "config.json").write_text("{"), "config.json: not valid JSON"),
    "binary config": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{"), "not valid JSON"),
    "config without model": (
        lambda f: (f / "config.json").write_text("[1]"),
        'expected an object with a "model" object',
    ),
    "unknown setting": (lambda f: edit_config(f, colour=1), "config: unknown colour"),
    "setting of another type": (
        lambda f: edit_config(f, head_width="8"),
        "head_width must be of type int, got '8'",
    ),
    "unknown path": (lambda f: edit_config(f, path="moon"), "path must be one of ou"),
    "other width": (
        lambda f: edit_config(f, head_width=16),
        r"weight must have shape \[16, 256\] by the config, got \[8, 256\]",
    ),
    "deeper model": (lambda f: edit_config(f, head_depth=2), r"lacks head.res_blocks.1.*, \.\.\.;"),
    "lost tensor": (
        lambda f: edit_weights(f, drop_embedding),
        "lacks context.embed.weight; it belongs to another model",
    ),
    "foreign tensor": (
        lambda f: edit_weights(f, add_tensor),
        "has extra.bias, which this model does not have",
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


def test_unknown_names_list_the_shipped_ones(tmp_path):
    with pytest.raises(CheckpointError, match="no model 'moon'.*sun-shadow.*or a folder"):
        load_model("moon")
    with pytest.raises(CheckpointError, match="expected one of the shipped names"):
        load_model(tmp_path / "nowhere")
    assert "sun-shadow" in shipped_models()
