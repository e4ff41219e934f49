"""Samples that become NaN or infinite are named, with step and level; the others are unchanged."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

import ardiff
from ardiff.loop import divergence
from ardiff.solvers import SOLVERS

PLACE = {"path": "flow", "prediction": "flow", "seed": 5}


def flow_table(name, steps=24):
    return ardiff.solver(name, path="flow", prediction="flow", steps=steps)


UNADJUSTED = [n for n in SOLVERS if "projected" not in n and not len(flow_table(n).accept_rows)]


def velocity(x, level, condition):
    """Of N(0, 1/4)."""
    t = level[:, None]
    return x * (t - (1 - t) / 4) / ((1 - t) ** 2 / 4 + t**2)


class Broken:
    """`velocity`, with `value` in the output of sample `which` from the call `at` on."""

    def __init__(self, which, value, at, once=True):
        self.which, self.value, self.at, self.once, self.calls = which, value, at, once, 0
        self.level = None

    def __call__(self, x, level, condition):
        self.calls += 1
        out = velocity(x, level, condition)
        if self.calls == self.at or self.calls > self.at and not self.once:
            out[self.which] = self.value
            self.level = float(level[0]) if self.level is None else self.level
        return out


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", UNADJUSTED)
def test_the_sample_the_step_and_the_level_are_named(name, value):
    options = {**PLACE, "solver": name, "steps": 24, "sample_ids": [9, 2**42, 4, 7]}
    clean, stats = ardiff.sample(velocity, (4, 3), return_stats=True, **options)
    assert not len(stats.nonfinite.sample_ids)
    broken = Broken(2, value, 3)
    with pytest.warns(ardiff.NonfiniteWarning, match=r"1 of 4 samples .* sample 4 since step"):
        x, stats = ardiff.sample(broken, (4, 3), return_stats=True, **options)
    others = [0, 1, 3]
    assert torch.equal(x[others], clean[others]) and not x[2].isfinite().all()
    found, table = stats.nonfinite, flow_table(name)
    assert found.sample_ids.tolist() == [4] and found.patch.tolist() == [0]
    third = table.calls_model.nonzero()[0][2]
    assert int(found.step) in (third, third + 1)  # velocity first, where the row is kinetic
    if int(found.step) == third:
        assert float(found.level) == pytest.approx(broken.level)


def test_the_option_decides_what_happens():
    options = {**PLACE, "solver": "ddpm", "steps": 8}
    with pytest.raises(FloatingPointError, match=r"2 of 3 samples .* 0 since step 1 .*, sample 2"):
        ardiff.sample(Broken([0, 2], math.nan, 2), (3, 2), nonfinite="raise", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x, stats = ardiff.sample(
            Broken(1, math.nan, 2), (3, 2), nonfinite="ignore", return_stats=True, **options
        )
        ardiff.sample(Broken(1, math.nan, 2), (3, 2), nonfinite="ignore", **options)
        ardiff.sample(velocity, (3, 2), **options)
    assert stats.nonfinite.sample_ids.tolist() == [1] and x[1].isnan().all()
    with pytest.raises(ValueError, match="nonfinite must be one of warn, raise, ignore"):
        ardiff.sample(velocity, (3, 2), nonfinite="maybe", **options)


@pytest.mark.parametrize("name", ["rtk-mala", "rtk-hmc", "rtk-harmonic-mala"])
def test_a_proposal_that_is_not_finite_is_no_divergence(name):
    """At an accept row the sample goes back to where it was, and the chain goes on from there."""
    options = {**PLACE, "solver": name, "steps": 24}
    table = flow_table(name)
    row = table.accept_rows[2]
    at = int(table.calls_model[: row + 1].sum())  # the call at the third proposal
    with warnings.catch_warnings():
        warnings.simplefilter("error", ardiff.NonfiniteWarning)
        x, stats = ardiff.sample(Broken(1, math.nan, at), (4, 3), return_stats=True, **options)
    assert x.isfinite().all() and stats.rejected_nonfinite == 1
    clean = ardiff.sample(velocity, (4, 3), **options)
    assert torch.equal(x[[0, 2, 3]], clean[[0, 2, 3]])


def test_samples_with_tables_of_their_own():
    options = {**PLACE, "solver": "ddpm", "steps": [4, 9, 6]}
    with pytest.warns(ardiff.NonfiniteWarning):
        _, stats = ardiff.sample(Broken(2, math.nan, 5), (3, 2), return_stats=True, **options)
    alone = flow_table("ddpm", 6)
    assert stats.nonfinite.step.tolist() == [4]
    assert float(stats.nonfinite.level) == pytest.approx(alone.level[4])


def test_images_name_their_patch():
    broken = Broken(1, math.nan, 16 + 7)  # second batch, second patch, third step
    sampler = ardiff.ARSampler(
        encode=lambda patches: torch.zeros(len(patches), 1), denoise=broken, patches=4, patch_dim=2,
        path="flow", prediction="flow", solver="ddpm", steps=4, batch=2,
    )  # fmt: skip
    with pytest.warns(ardiff.NonfiniteWarning, match="1 of 5 .* 3 since step 2 .* of patch 1"):
        drawn = sampler.sample(5, seed=1)
    found = drawn.stats.nonfinite
    assert [member.tolist() for member in found[:3]] == [[3], [1], [2]]
    assert float(found.level) == pytest.approx(broken.level)
    clean = sampler.sample(5, seed=1)
    assert not len(clean.stats.nonfinite.sample_ids)
    others = [0, 1, 2, 4]
    assert torch.equal(drawn.images[others], clean.images[others])
    assert drawn.images[3, 0].isfinite().all() and drawn.images[3, 1].isnan().all()
    broken.calls = 0
    with pytest.raises(FloatingPointError, match="sample 3"):
        sampler.sample(5, seed=1, nonfinite="raise")


def test_findings_of_several_patches_keep_the_earliest():
    def at(sample, patch, step):
        return divergence.find(
            torch.tensor([-1, step]), torch.ones(9), torch.tensor([0, sample]), patch
        )

    found = divergence.Nonfinite.of([at(5, 0, 3), at(2, 1, 0), at(5, 1, 0)])
    assert [member.tolist() for member in found[:3]] == [[2, 5], [1, 0], [0, 3]]
