"""The pages' examples run: of MAR's recipe every line but the downloads, on stand-ins."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from ardiff.integrations.fid import save_images
from tests import ROOT
from tests.integrations._support.mar_model import MARLike, mar_like
from tests.integrations._support.torchvision_stub import fidelity  # noqa: F401

PAGES = ROOT / "docs" / "integrations"


def example(page: str) -> str:
    (found,) = re.findall(r"```python\n(.*?)```", (PAGES / page).read_text(), re.DOTALL)
    return found


class Tokens(MARLike):
    """With the arguments and the result of MAR's `sample_tokens`."""

    def sample_tokens(self, bsz, num_iter, cfg, cfg_schedule, labels):
        assert cfg_schedule == "linear" and len(labels) == bsz
        assert vars(self.diffloss)["_ardiff_accelerator"].table.calls == 20
        tokens = super().sample_tokens(bsz, min(num_iter, 4), cfg)
        return tokens.transpose(1, 2).unflatten(2, (4, 4))


class Decoder(nn.Module):
    def __init__(self, embed_dim, ch_mult, ckpt_path) -> None:
        super().__init__()
        assert Path(ckpt_path).suffix == ".ckpt"

    def decode(self, x):
        return (0.2325 * x[:, :3] / 2).repeat_interleave(2, 2).repeat_interleave(2, 3)


@pytest.mark.usefixtures("fidelity")
def test_from_weights_to_samples_and_fid(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {}, "model_ema": mar_like().state_dict()}, "checkpoint-last.pth")
    asked = {}

    def mar_base(**options):
        asked.update(options)
        return Tokens()

    models = types.ModuleType("models")
    models.mar, models.vae = types.SimpleNamespace(mar_base=mar_base), types.ModuleType("vae")
    models.vae.AutoencoderKL = Decoder
    monkeypatch.setitem(sys.modules, "models", models)
    monkeypatch.setitem(sys.modules, "models.vae", models.vae)
    reference = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    save_images(reference, "reference")
    code = example("mar.md").replace("50_000, 100", "24, 8")
    assert "24, 8" in code
    exec(compile(code, "mar.md", "exec"), {})
    assert len(list(Path("samples").glob("*.png"))) == 24
    assert 0.001 < float(capsys.readouterr().out) < 10
    assert asked["num_sampling_steps"] == "100"


def test_the_example_of_nextstep(capsys):
    exec(compile(example("nextstep.md"), "nextstep.md", "exec"), {})
    assert capsys.readouterr().out == "torch.Size([4, 64])\n"
