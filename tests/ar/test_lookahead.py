"""Autoregressive samplers with a lookahead."""

from __future__ import annotations

import pytest
import torch

import ardiff
from ardiff.ar.engine import AREngine
from ardiff.batch_invariant import batch_invariant
from tests._support.small_models import small_model

SAME = {"lookahead": 12, "mode": "picard", "tolerance": 0.0}


@pytest.mark.parametrize("solver", ["ddpm", "dpmpp-2m", "rtk-uld"])
def test_without_tolerance_images_have_their_bits(solver):
    model = small_model()
    with batch_invariant():
        expected = ardiff.ARSampler(model, solver, steps=12).sample(3, seed=1)
        found = ardiff.ARSampler(model, solver, steps=12, **SAME).sample(3, seed=1)
    assert torch.equal(found.images, expected.images)
    assert found.stats.rounds <= expected.stats.rounds


def test_an_image_is_the_same_in_any_batch():
    with batch_invariant():
        sampler = ardiff.ARSampler(small_model(), "ddpm", steps=[12, 9, 12, 5], lookahead=5)
        whole = sampler.sample(4, seed=1).images
        assert torch.equal(sampler.sample(2, seed=1, sample_ids=[3, 1]).images, whole[[3, 1]])
        shards = [sampler.sample(2, seed=1, first=first).images for first in (0, 2)]
        sampler.batch = 1
        alone = sampler.sample(4, seed=1).images
    assert torch.equal(torch.cat(shards), whole)
    assert torch.equal(alone, whole)


def test_stats_of_each_patch():
    sampler = ardiff.ARSampler(small_model(), "ddpm", steps=12, lookahead=4, batch=2)
    stats = sampler.sample(3, seed=1).stats
    patches, batches = sampler.model.config.patches, 2
    assert len(stats.lookahead) == patches * batches
    assert stats.calls == sum(made.evaluated for made in stats.lookahead) / 3
    assert stats.rounds == sum(int(made.rounds.max()) for made in stats.lookahead)
    row_by_row = ardiff.ARSampler(small_model(), "ddpm", steps=12, batch=2).sample(3, seed=1).stats
    assert row_by_row.rounds == batches * row_by_row.calls
    assert row_by_row.lookahead == ()


def _drawn(engine: AREngine, requests: list[dict]) -> list[torch.Tensor]:
    numbers = [engine.submit(None, 4, **request) for request in requests]
    while engine.step():
        pass
    found = {each.request: each.patches for each in engine.collect()}
    return [found[number] for number in numbers]


REQUESTS = [
    {"seed": 3, "sample_id": 0}, {"seed": 3, "sample_id": 1, "temperature": 0.9},
    {"seed": 4, "sample_id": 1}, {"seed": 3, "sample_id": 2, "steps": 7},
]  # fmt: skip


def test_requests_of_several_keys_are_as_alone():
    options = {"steps": 12, "batch_invariant": True, "lookahead": 5}
    together = _drawn(AREngine(small_model(), "ddpm", **options), REQUESTS)
    for request, patches in zip(REQUESTS, together, strict=True):
        alone = _drawn(AREngine(small_model(), "ddpm", **options), [request])
        assert torch.equal(alone[0], patches)


def test_without_tolerance_requests_have_their_bits():
    options = {"steps": 12, "batch_invariant": True}
    expected = _drawn(AREngine(small_model(), "ddpm", **options), REQUESTS)
    found = _drawn(AREngine(small_model(), "ddpm", **options, **SAME), REQUESTS)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", [ardiff.ARSampler, AREngine])
def test_refusals(kind):
    with pytest.raises(ValueError, match="adds no noise"):
        kind(small_model(), "ddim", steps=8, lookahead=4)
    with pytest.raises(ValueError, match="accept or reject"):
        kind(small_model(), "rtk-mala", steps=8, lookahead=4)
    with pytest.raises(ValueError, match="go with lookahead"):
        kind(small_model(), "ddpm", steps=8, mode="picard")
