"""What rounding costs, at few images: the reference, the roundings, the tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import ardiff
from ardiff.ar.sampler import ARSampler
from benchmarks import weight_rounding
from benchmarks._harness import relative_error


@pytest.fixture(scope="module")
def model():
    return ardiff.load("sun-shadow")


def matrices(model) -> list[torch.Tensor]:
    return [m.weight for m in model.modules() if isinstance(m, nn.Linear)]


def test_a_moved_model_rounds_to_the_shipped_one(model):
    moved = weight_rounding.off_the_grid(model)
    for before, after in zip(matrices(model), matrices(moved), strict=True):
        assert torch.equal(after.bfloat16().float(), before)
        assert ((after != before) == (before != 0)).float().mean() > 0.9


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_encoders_are_rounded_and_nothing_else(model, dtype):
    moved = weight_rounding.off_the_grid(model)
    rounded = weight_rounding.rounded_encoder(moved, dtype)
    inside = {id(m.weight) for m in rounded.context.blocks.modules() if isinstance(m, nn.Linear)}
    for before, after in zip(matrices(moved), matrices(rounded), strict=True):
        if id(after) not in inside or dtype == "float32":
            assert torch.equal(before, after)
            continue
        assert not torch.equal(before, after)
        if dtype == "bfloat16":
            assert torch.equal(before.bfloat16().float(), after)
        else:
            half = before.abs().amax(1, keepdim=True) / 254
            assert ((before - after).abs() <= half * 1.001).all()


@pytest.mark.parametrize("solver", ["dpmpp-2m-sde", "ddpm"])
def test_the_loop_in_float64_is_the_samplers(model, solver):
    """To float32 rounding, and on the noise of the seed."""
    sampler = ARSampler(model, solver, steps=8, batch=2)
    exact = weight_rounding.Exact(model, sampler.table)
    expected = exact.latents(3, 5)
    found = weight_rounding.latents(sampler, 3, 5)
    assert found.shape == expected.shape == (3, 4, 768) and expected.dtype == torch.float64
    assert relative_error(found, expected) < 1e-4
    assert relative_error(weight_rounding.latents(sampler, 3, 6), expected) > 0.1


def test_tables_with_more_than_the_loop_has_are_refused(model):
    for solver in ("rtk-uld", "sa"):
        sampler = ARSampler(model, solver, steps=8)
        with pytest.raises(ValueError, match="expected a table of diffusion rows with columns of"):
            weight_rounding.Exact(model, sampler.table)


def test_the_tables(monkeypatch, capsys):
    kept = weight_rounding.VARIANTS[0], weight_rounding.VARIANTS[-1]
    monkeypatch.setattr(weight_rounding, "VARIANTS", kept)
    weight_rounding.main(["--images", "6", "--seeds", "2", "--steps", "6"])
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    assert len(lines) == (2 + 2) + (2 + 2 + 2)
    assert lines[0].count("patch") == 4 and "deviation between seeds" in printed
    errors = [[float(cell.split()[0]) for cell in line.split("|")[3:7]] for line in lines[2:4]]
    assert (np.array(errors[0]) < 1e-3).all() and (np.array(errors[1]) > 1e-3).all()


def test_one_seed_has_no_spread(capsys):
    with pytest.raises(SystemExit):
        weight_rounding.main(["--seeds", "1"])
    assert "--seeds must be 2 or more" in capsys.readouterr().err
