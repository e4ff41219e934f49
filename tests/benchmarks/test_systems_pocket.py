"""The Pocket-TTS systems of the suite `systems`, at tiny sizes."""

from __future__ import annotations

import pytest
import torch

import ardiff
from ardiff.integrations.systems.shares import REST, measure
from benchmarks import systems_pocket

threads = torch.get_num_threads()
pytest.importorskip("pocket_tts")
torch.set_num_threads(threads)  # the package sets one thread for the whole process
from benchmarks import systems_pocket_package  # noqa: E402


@pytest.mark.parametrize("system", [systems_pocket, systems_pocket_package])
def test_a_run_has_its_frames_and_goes_faster_by_the_same_numbers(system):
    model = system.build("tiny", "float32", 0)
    stock = system.generate(model, "tiny", 1)
    assert stock["latents"].shape == (3, 32)
    assert stock["audio"].shape == (system.amount("tiny") * 24_000,)
    assert torch.equal(system.generate(model, "tiny", 1)["latents"], stock["latents"])
    assert not torch.equal(system.generate(model, "tiny", 2)["latents"], stock["latents"])
    assert not torch.equal(
        system.generate(system.build("tiny", "float32", 1), "tiny", 1)["latents"], stock["latents"]
    )
    report = ardiff.accelerate(model)
    assert {"attention", "head", "linears"} <= set(report.replaced)
    for name, found in system.generate(model, "tiny", 1).items():
        error = float((found - stock[name]).norm() / stock[name].norm())
        assert 0 < error < 1e-5


@pytest.mark.parametrize("system", [systems_pocket, systems_pocket_package])
def test_every_part_takes_time(system):
    model = system.build("tiny", "float32", 0)
    paths = [(part, path.rpartition(".")) for part, paths in system.PARTS.items() for path in paths]
    methods = [(part, model.get_submodule(owner), name) for part, (owner, _, name) in paths]
    spent = measure(lambda: system.generate(model, "tiny", 1), methods, "cpu")
    assert set(spent) == {*system.PARTS, REST} and min(spent.values()) > 0
    model.get_submodule(system.BACKBONE)


def test_quantize_changes_the_linear_layers():
    model = systems_pocket_package.build("tiny", "float32", 0)
    systems_pocket_package.RIVALS["quantize"](model)
    layer = model.flow_lm.transformer.layers[0]
    assert type(layer.linear1) is not torch.nn.Linear
    assert systems_pocket_package.generate(model, "tiny", 1)["audio"].isfinite().all()


def test_another_dtype_is_refused():
    with pytest.raises(ValueError, match="float32 only, got bfloat16"):
        systems_pocket_package.build("tiny", "bfloat16", 0)
