"""Training: it learns, it resumes to the bit, and it refuses what it should."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ardiff._files.checkpoints import CheckpointError, write_tensors
from ardiff.models.checkpoint import load_model
from ardiff.training.trainer import CHECKPOINT, TrainConfig, Trainer, TrainingDiverged, train

SMALL = TrainConfig(
    images=96,
    batch=8,
    steps=6,
    width=16,
    depth=1,
    context_width=16,
    context_depth=1,
    checkpoint_every=3,
    threads=1,
)


def small(tmp_path, **changes) -> TrainConfig:
    return dataclasses.replace(SMALL, out=str(tmp_path / "run"), **changes)


@pytest.mark.parametrize("preconditioning", ["cosine", "edm"])
def test_resumed_run_is_bit_equal(tmp_path, preconditioning, monkeypatch):
    options = dict(preconditioning=preconditioning, context_dropout=0.2, context_noise=0.1)
    whole = small(tmp_path / "whole", **options)
    train(whole, progress=False)

    parts = small(tmp_path / "parts", **options)
    advance = Trainer.advance

    def interrupted(self):
        if self.step == 4:
            raise KeyboardInterrupt
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(parts, progress=False)
    report = train(dataclasses.replace(parts, resume=True), progress=False)
    assert report.steps == 6

    for name in ("model.safetensors", CHECKPOINT):
        expected = load_file(tmp_path / "whole" / "run" / name)
        got = load_file(tmp_path / "parts" / "run" / name)
        assert expected.keys() == got.keys()
        for key, value in expected.items():
            assert torch.equal(value, got[key]), f"{name}: {key}"
    other = small(tmp_path / "other", **options, seed=1)
    train(other, progress=False)
    moved = load_file(tmp_path / "other" / "run" / "model.safetensors")
    assert not torch.equal(moved["head.input_proj.weight"], got["model.head.input_proj.weight"])


def test_loss_falls_and_the_average_lags(tmp_path):
    config = small(tmp_path, steps=150, width=48, batch=16, images=400, checkpoint_every=1000)
    trainer = Trainer(config)
    losses = [trainer.advance() for _ in range(150)]
    # Over seeds the ratio is .2 to .35; an optimizer that does nothing gives 1.
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])
    model, average = (m.head.input_proj.weight for m in (trainer.model, trainer.average))
    assert not torch.equal(model, average)
    assert (model - average).abs().mean() < model.abs().mean()


def test_normalised_patches_have_zero_mean_and_unit_variance():
    trainer = Trainer(dataclasses.replace(SMALL, images=2000))
    patches = trainer.model.to_patches(trainer.pixels.float() / 127.5 - 1)
    assert patches.mean(0).abs().max() < 1e-4
    assert abs(patches.square().mean() - 1) < 1e-4


def test_levels_and_weights_are_those_of_the_recipe():
    """256 strata of levels: their mean differs from the middle by less than a stratum."""
    cosine = Trainer(SMALL)
    level, weight = cosine._levels(256)
    top = cosine.path.level(100.0)
    assert level.min() >= 0 and level.max() <= top and abs(level.mean() - top / 2) < top / 256
    expected = (1 / cosine.path.sigma(level) ** 2).clip(max=25)
    assert abs(weight - expected).max() < 1e-9 and weight.max() == 25
    edm = Trainer(dataclasses.replace(SMALL, preconditioning="edm"))
    sigma, weight = edm._levels(256)
    assert sigma.min() > 0 and abs(weight - (1 + sigma**-2.0)).max() < 1e-9


def test_mode_levels_gather_where_modes_are_decided():
    """Half of 4096 levels are log-normal around ratio 10: [4, 25] holds 75% of them."""
    trainer = Trainer(dataclasses.replace(SMALL, mode_levels=0.5))
    level, weight = trainer._levels(4096)
    ratio = trainer.path.ratio(level)
    assert 0.4 < ((ratio > 4) & (ratio < 25)).mean() < 0.55
    assert abs(weight - (1 / trainer.path.sigma(level) ** 2).clip(max=25)).max() < 1e-9


def test_mismatch_swaps_noisy_inputs_only():
    """Of 4000 noisy rows 30% are another image's (standard error .7%), of the others none."""
    trainer = Trainer(dataclasses.replace(SMALL, mismatch=0.3))
    patches = torch.arange(2000.0).view(2000, 1, 1).expand(2000, 4, 2)
    level = trainer.path.level(np.tile([50.0, 3.5, 2.9, 0.1], 2000))
    swapped = (trainer._shown(patches, level) != patches.flatten(0, 1)).any(1).view(2000, 4)
    assert 0.26 < swapped[:, :2].float().mean() < 0.34 and not swapped[:, 2:].any()


def test_init_takes_up_the_weights_of_a_model(tmp_path):
    first = train(small(tmp_path / "first"), progress=False).folder
    trainer = Trainer(small(tmp_path / "second", init=str(first), seed=3))
    for name, value in load_model(first).state_dict().items():
        assert torch.equal(trainer.model.state_dict()[name], value), name
    with pytest.raises(CheckpointError, match="is another kind of model; give this run its widths"):
        Trainer(small(tmp_path / "third", init=str(first), width=24))
    with pytest.raises(CheckpointError, match="no model 'moon'"):
        Trainer(small(tmp_path / "third", init="moon"))


def test_trained_folder_loads_and_says_what_made_it(tmp_path):
    config = small(tmp_path, context_dropout=0.5)
    report = train(config, progress=False)
    model = load_model(report.folder)
    assert model.config.null_context and model.null is not None
    assert not any(p.requires_grad for p in model.parameters())
    made = json.loads((report.folder / "config.json").read_text())["training"]
    assert made == config.identity() | {"threads": 1}
    files = {p.name for p in report.folder.iterdir()}
    assert files == {"config.json", "model.safetensors", CHECKPOINT}


def test_saved_dtype(tmp_path):
    folder = train(small(tmp_path, dtype="bfloat16"), progress=False).folder
    saved = load_file(folder / "model.safetensors")
    assert saved["head.input_proj.weight"].dtype == torch.bfloat16
    assert saved["mean"].dtype == torch.float32


def test_progress_bar_goes_to_the_end(tmp_path, capsys):
    train(small(tmp_path), progress=True)
    assert "6/6" in capsys.readouterr().err


def test_divergence_is_named(tmp_path):
    with pytest.raises(TrainingDiverged, match="the loss is nan at step .* lower the rate"):
        trainer = Trainer(SMALL)
        with torch.no_grad():
            trainer.model.head.input_proj.weight.fill_(float("nan"))
        trainer.advance()


def poison_gradient(monkeypatch, steps, value=float("nan")):
    """The gradient of `steps` gets one `value`; their loss stays as it is."""
    loss = Trainer.loss

    def poisoned(self):
        out = loss(self)
        if self.step in steps:
            out = out + _ZeroWithGradient.apply(next(self.model.parameters()), value)
        return out

    monkeypatch.setattr(Trainer, "loss", poisoned)


class _ZeroWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, value):
        ctx.shape, ctx.value = x.shape, value
        return x.new_zeros(())

    @staticmethod
    def backward(ctx, up):
        gradient = up.new_zeros(ctx.shape)
        gradient.view(-1)[0] = ctx.value
        return gradient, None


def everything(trainer):
    """Copies of weights, average and moments."""
    state = trainer.optimizer.state_dict()["state"]
    moments = [value for entry in state.values() for value in entry.values()]
    modules = (trainer.model, trainer.average)
    return [t.clone() for t in [*(p for m in modules for p in m.state_dict().values()), *moments]]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_whose_gradient_is_not_finite_is_skipped_and_counted(monkeypatch, value):
    """The loss is finite and returned; what the step would have changed keeps its bits."""
    poison_gradient(monkeypatch, {0, 2}, value)
    trainer = Trainer(SMALL)
    trainer.advance()
    assert (trainer.step, trainer.skipped) == (1, 1)
    assert not trainer.optimizer.state_dict()["state"]
    trainer.advance()
    before = everything(trainer)
    assert 0 < trainer.advance() < 1000
    assert (trainer.step, trainer.skipped) == (3, 2)
    after = everything(trainer)
    assert len(after) == len(before) and all(map(torch.equal, after, before))
    trainer.advance()
    assert (trainer.step, trainer.skipped) == (4, 2)
    state = trainer.optimizer.state_dict()["state"]
    assert {entry["step"].item() for entry in state.values()} == {2}
    assert all(torch.isfinite(t).all() for t in everything(trainer))


def test_skipped_steps_are_reported_and_resumed(tmp_path, monkeypatch):
    """Steps 2 and 4 are skipped: one before the checkpoint at 3, one after it."""
    poison_gradient(monkeypatch, {2, 4})
    with pytest.warns(UserWarning, match="2 of 6 steps were skipped, since their gradient"):
        report = train(small(tmp_path / "whole"), progress=False)
    assert (report.steps, report.skipped) == (6, 2)

    def stop(self, advance=Trainer.advance):
        if self.step == 4:
            raise KeyboardInterrupt
        return advance(self)

    parts = small(tmp_path / "parts")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", stop)
        with pytest.raises(KeyboardInterrupt):
            train(parts, progress=False)
    with pytest.warns(UserWarning, match="2 of 6 steps"):
        report = train(dataclasses.replace(parts, resume=True), progress=False)
    assert (report.steps, report.skipped) == (6, 2)
    for name in ("model.safetensors", CHECKPOINT):
        files = [(tmp_path / run / "run" / name).read_bytes() for run in ("whole", "parts")]
        assert files[0] == files[1], name


def test_many_skipped_steps_in_a_row_are_divergence(tmp_path, monkeypatch):
    """The last checkpoint, of step 3, stays; the count starts again after a good step."""
    poison_gradient(monkeypatch, {0, *range(4, 99)})
    config = small(tmp_path, steps=40, checkpoint_every=3)
    kept = Trainer.save
    monkeypatch.setattr(Trainer, "save", lambda self, p: kept(self, p) if self.step <= 3 else None)
    message = "not finite in 20 steps in a row, the last with norm nan at step 23: lower the rate"
    with pytest.raises(TrainingDiverged, match=message):
        train(config, progress=False)
    trainer = Trainer(config)
    trainer.restore(tmp_path / "run" / CHECKPOINT)
    assert (trainer.step, trainer.skipped) == (3, 1)


def test_a_state_that_is_not_finite_keeps_the_last_checkpoint(tmp_path):
    path = tmp_path / CHECKPOINT
    trainer = Trainer(SMALL)
    trainer.advance()
    trainer.save(path)
    before = path.read_bytes()
    trainer.advance()
    for broken in (trainer.average.mean, trainer.optimizer.state_dict()["state"][0]["exp_avg"]):
        value = broken.view(-1)[0].item()
        broken.view(-1)[0] = float("inf")
        with pytest.raises(TrainingDiverged, match="not written: .* holds NaN or infinite"):
            trainer.save(path)
        broken.view(-1)[0] = value
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [CHECKPOINT]
    trainer.save(path)
    again = Trainer(SMALL)
    again.restore(path)
    assert again.step == 2


def test_equal_runs_give_equal_files(tmp_path):
    for run in ("a", "b"):
        train(small(tmp_path / run), progress=False)
    for name in ("model.safetensors", CHECKPOINT, "config.json"):
        first, second = ((tmp_path / run / "run" / name).read_bytes() for run in ("a", "b"))
        assert first == second, name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "moon"}, "variant must be one of paper, free, got 'moon'"),
        ({"preconditioning": "none"}, "preconditioning must be one of cosine, edm"),
        ({"steps": 0}, "steps must be positive, got 0"),
        ({"batch": -1}, "batch must be positive, got -1"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\), got 1.0"),
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
        ({"lr": float("nan")}, "lr must be positive, got nan"),
        ({"context_noise": -0.1}, "context_noise must not be negative"),
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16"),
        ({"seed": 2**63}, "the seed must fit in int64, got 9223372036854775808"),
        ({"seed": -(2**63) - 1}, "the seed must fit in int64, got -9223372036854775809"),
        ({"data": "folder"}, "data takes all images of its folder: leave out variant and images"),
        ({"patch_size": 0}, "patch_size must be positive, got 0"),
        ({"threads": -1}, "threads must not be negative, got -1"),
    ],
)
def test_bad_configs_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


def test_a_finished_run_is_extended(tmp_path, monkeypatch):
    """Like the same state advanced on the schedule of the larger number, also when interrupted."""
    trainer, threads = Trainer(small(tmp_path, steps=3)), torch.get_num_threads()
    torch.set_num_threads(1)
    for steps in (3, 6):
        trainer.config = dataclasses.replace(trainer.config, steps=steps)
        while trainer.step < steps:
            trainer.advance()
    torch.set_num_threads(threads)
    train(small(tmp_path, steps=3), progress=False)
    longer, advance = small(tmp_path, steps=6, checkpoint_every=1, resume=True), Trainer.advance

    def interrupted(self):
        if self.step == 5:
            raise KeyboardInterrupt
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(longer, progress=False)
    report = train(longer, progress=False)
    assert report.steps == 6
    model = load_file(report.folder / "model.safetensors")
    for name, value in trainer.average.state_dict().items():
        assert torch.equal(model[name], value), name
    made = json.loads((report.folder / "config.json").read_text())["training"]
    assert made == longer.identity() | {"threads": 1, "extended_from": [3]}
    assert math.isnan(train(longer, progress=False).loss)
    train(dataclasses.replace(longer, steps=7), progress=False)
    made = json.loads((report.folder / "config.json").read_text())["training"]
    assert (made["steps"], made["extended_from"]) == (7, [3, 6])
    with pytest.raises(CheckpointError, match="steps was 7, now 6. Resume with the same settings"):
        train(longer, progress=False)


def test_an_unfinished_run_is_not_extended(tmp_path):
    trainer = Trainer(small(tmp_path, steps=3))
    trainer.advance()
    trainer.save(tmp_path / CHECKPOINT)
    longer = Trainer(small(tmp_path, steps=6))
    with pytest.raises(CheckpointError, match="was 3, now 6.* once it has ended, more steps ext"):
        longer.restore(tmp_path / CHECKPOINT)
    assert longer.step == 0


def test_the_identity_of_older_checkpoints_is_kept():
    assert not {"data", "patch_size"} & SMALL.identity().keys()
    assert dataclasses.replace(SMALL, patch_size=8).identity()["patch_size"] == 8


def test_own_images_are_trained_on(tmp_path):
    """The model's normalisation is their mean; another set is another run, a moved one is not."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), np.uint8)
    for i, image in enumerate(pixels):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
    own = {"images": TrainConfig.images, "data": str(tmp_path / "images"), "patch_size": 4}
    folder = train(small(tmp_path, **own, steps=2), progress=False).folder
    model = load_model(folder)
    assert (model.config.image_size, model.config.patch_size, model.config.patches) == (8, 4, 4)
    first = pixels[:, :4, :4].transpose(0, 3, 1, 2).reshape(10, 48) / 127.5 - 1
    np.testing.assert_allclose(model.mean[0].numpy(), first.mean(0), atol=1e-6)
    (tmp_path / "images").rename(tmp_path / "moved")
    moved = small(tmp_path, **own | {"data": str(tmp_path / "moved")}, steps=3, resume=True)
    assert train(moved, progress=False).steps == 3
    (tmp_path / "moved" / "9.png").unlink()
    with pytest.raises(CheckpointError, match="is of another run: data was"):
        train(moved, progress=False)


class TestResumeErrors:
    def test_nothing_to_resume(self, tmp_path):
        with pytest.raises(CheckpointError, match="no such file; expected a safetensors"):
            train(small(tmp_path, resume=True), progress=False)

    def test_existing_run_is_not_overwritten(self, tmp_path):
        train(small(tmp_path), progress=False)
        with pytest.raises(CheckpointError, match="exists: resume that run, or give another"):
            train(small(tmp_path), progress=False)

    @pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
    def test_existing_model_is_not_overwritten(self, tmp_path, file):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / file).write_text("precious")
        with pytest.raises(CheckpointError, match=f"{file} exists: give another folder"):
            train(small(tmp_path), progress=False)
        assert (tmp_path / "run" / file).read_text() == "precious"

    def test_other_files_may_stand_in_the_folder(self, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "notes.txt").write_text("kept")
        folder = train(small(tmp_path, steps=1), progress=False).folder
        assert (folder / "notes.txt").read_text() == "kept"

    def test_unwritable_folder_is_refused_before_training(self, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        monkeypatch.setattr(Trainer, "__init__", lambda *_: pytest.fail("training began"))
        with pytest.raises(ValueError, match="out: cannot write in .*file/run"):
            train(small(tmp_path / "file"), progress=False)

    def test_resume_does_not_need_the_first_weights(self, tmp_path):
        first = train(small(tmp_path / "first"), progress=False).folder
        config = small(tmp_path, init=str(first))
        train(config, progress=False)
        shutil.rmtree(first)
        assert train(dataclasses.replace(config, resume=True), progress=False).steps == 6

    def test_other_config(self, tmp_path):
        train(small(tmp_path), progress=False)
        with pytest.raises(CheckpointError, match="width was 16, now 24. Resume with the same"):
            train(small(tmp_path, width=24, resume=True), progress=False)

    def test_truncated(self, tmp_path):
        folder = train(small(tmp_path), progress=False).folder
        data = (folder / CHECKPOINT).read_bytes()
        (folder / CHECKPOINT).write_bytes(data[: len(data) // 2])
        with pytest.raises(CheckpointError, match="not a whole safetensors file .* truncated"):
            train(small(tmp_path, resume=True), progress=False)

    def test_no_training_checkpoint(self, tmp_path):
        write_tensors(tmp_path / "run" / CHECKPOINT, {"x": torch.zeros(1)}, {"format": "pt"})
        with pytest.raises(CheckpointError, match="is no training checkpoint"):
            train(small(tmp_path, resume=True), progress=False)
