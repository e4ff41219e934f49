"""MAR's .pth files: weights are found, code is never run."""

from __future__ import annotations

import argparse
import pickle
import zipfile

import pytest
import torch

from ardiff._files.checkpoints import CheckpointError
from ardiff.integrations import mar
from tests._support.head_cases import rows
from tests.integrations._support.mar_model import mar_like


class Spy:
    """Unpickled, it leaves a file."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def model():
    return mar_like()


def saved(path, **entries):
    torch.save(entries, path, _use_new_zipfile_serialization=path.suffix != ".old")
    return path


@pytest.mark.parametrize("suffix", [".pth", ".old"])
def test_the_average_is_preferred(tmp_path, model, suffix):
    """With the command line that MAR saves beside it, in new files and in old ones."""
    mean = {name: 2 * tensor for name, tensor in model.state_dict().items()}
    path = saved(
        tmp_path / f"checkpoint-last{suffix}", model=model.state_dict(), model_ema=mean,
        optimizer={"state": {0: {"step": torch.ones(1)}}, "param_groups": [{"lr": 1e-4}]},
        epoch=799, args=argparse.Namespace(model="mar_base", lr=None, blr=1e-4),
    )  # fmt: skip
    name = "diffloss.net.input_proj.weight"
    for which, factor in ((None, 2), ("model_ema", 2), ("model", 1)):
        found = mar.load_tensors(path, which)
        assert found.keys() == model.state_dict().keys()
        assert torch.equal(found[name], factor * model.state_dict()[name])
        head = mar.load_checkpoint(path, which)
        assert torch.equal(head.input_proj.weight, found[name]) and not head.training
    x, c, t = rows(3, 4), rows(3, 48), torch.tensor([7.0, 100, 900])
    expected = model.diffloss.net(x, t, c)
    torch.testing.assert_close(head(x, t, c), expected, atol=1e-5, rtol=1e-5)


def test_a_file_without_an_average(tmp_path, model):
    path = saved(tmp_path / "model.pth", model=model.state_dict())
    assert mar.load_tensors(path).keys() == model.state_dict().keys()
    with pytest.raises(CheckpointError, match="a state dict under model_ema, got model"):
        mar.load_tensors(path, "model_ema")
    with pytest.raises(ValueError, match="which must be None, model_ema or model, got 'ema'"):
        mar.load_tensors(path, "ema")


@pytest.mark.parametrize("suffix", [".pth", ".old"])
def test_code_is_not_run(tmp_path, model, suffix):
    trace = tmp_path / "trace"
    path = saved(tmp_path / f"evil{suffix}", model=model.state_dict(), extra=Spy(trace))
    with pytest.raises(CheckpointError, match="holds more than tensors and was not loaded"):
        mar.load_checkpoint(path)
    assert not trace.exists()
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"model": Spy(trace)}))
    with pytest.raises(CheckpointError):
        mar.load_checkpoint(tmp_path / "evil.pkl")
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()


def claims_of(tensors, how):
    """A state dict of a head 10^6 wide, or of one with names that no tensors are stored for."""
    if how == "stride 0":
        grown = {n: [10**6 if s == 32 else s for s in t.shape] for n, t in tensors.items()}
        return {n: torch.zeros(1).expand(shape) for n, shape in grown.items()}
    stored = torch.zeros(max(t.numel() for t in tensors.values()))
    return {n: stored[: t.numel()].view(t.shape) for n, t in tensors.items()}


@pytest.mark.parametrize("suffix", [".pth", ".old"])
@pytest.mark.parametrize("how", ["stride 0", "one storage"])
def test_more_values_than_the_file_stores_are_refused(tmp_path, model, monkeypatch, how, suffix):
    """Before any module is made, be it on the meta device."""
    path = saved(tmp_path / f"few{suffix}", model=claims_of(model.state_dict(), how))
    monkeypatch.setattr(torch.nn.Linear, "__init__", lambda *_, **__: pytest.fail("a layer made"))
    with pytest.raises(CheckpointError, match="claims [0-9,]+ bytes of tensors, but [0-9,]+ are"):
        mar.load_checkpoint(path)


def test_a_compressed_archive_is_refused_unread(tmp_path, model):
    """A deflated entry can grow a thousandfold; torch writes none."""
    path, packed = saved(tmp_path / "whole.pth", model=model.state_dict()), tmp_path / "packed.pth"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        new.writestr("archive/zeros", bytes(2**20))
    with pytest.raises(CheckpointError, match="its entries claim [0-9,]+ bytes, the file has"):
        mar.load_tensors(packed)


def test_damaged_and_other_files_are_named(tmp_path, model):
    whole = saved(tmp_path / "whole.pth", model=model.state_dict()).read_bytes()
    for name, content in (("half", whole[: len(whole) // 2]), ("empty", b""), ("text", b"abc" * 9)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name}"):
            mar.load_tensors(tmp_path / name)
    with pytest.raises(CheckpointError, match="no such file; expected a MAR checkpoint"):
        mar.load_tensors(tmp_path / "absent.pth")
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match="under model_ema or model, got mask_token, pos"):
        mar.load_tensors(tmp_path / "bare.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="expected a dict, got list"):
        mar.load_tensors(tmp_path / "list.pth")
    path = saved(tmp_path / "headless.pth", model={"weight": torch.ones(2)})
    with pytest.raises(CheckpointError, match="no diffusion head"):
        mar.load_checkpoint(path)
