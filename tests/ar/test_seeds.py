"""Draws without a seed differ and follow `torch.manual_seed`; equal seeds are equal draws.

A key is drawn from 2^64: two of the draws below would be equal with probability below 1e-17.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ardiff
from ardiff.noise import make_key
from tests._support.small_models import small_model

MODEL = small_model()
SOLVER = {"path": "ou", "prediction": "score", "solver": "ddpm", "steps": 4}


def plain(n, **options):
    return ardiff.sample(lambda x, level, condition: -x, (n, 2), **SOLVER, **options)


def sampler(n, **options):
    return ardiff.ARSampler(MODEL, "ddpm", steps=4).sample(n, **options).images


def streamed(n, **options):
    made = ardiff.ARSampler(MODEL, "ddpm", steps=4).stream(n, **options)
    return torch.stack([patch.pixels for patch in made], 1)


def engine(n, **options):
    engine = ardiff.AREngine(MODEL, rows=n, capacity=8 * n, steps=4, solver="ddpm")
    ids = [engine.submit(None, patches=2, **options) for _ in range(n)]
    while engine.step():
        pass
    by_id = {done.request: done.patches for done in engine.collect()}
    return torch.stack([by_id[i] for i in ids])


FACES = {"sample": plain, "ARSampler": sampler, "stream": streamed, "AREngine": engine}


@pytest.mark.parametrize("draw", FACES.values(), ids=FACES)
def test_draws_pooled_over_calls_are_distinct(draw):
    pooled = torch.cat([draw(4) for _ in range(5)]).flatten(1)
    assert len(pooled.unique(dim=0)) == 20
    same = torch.cat([draw(4, seed=0) for _ in range(5)]).flatten(1)
    assert len(same.unique(dim=0)) == 4  # so that the count above can fail


@pytest.mark.parametrize("draw", FACES.values(), ids=FACES)
def test_torch_seeds_the_draws_that_have_no_seed(draw):
    torch.manual_seed(5)
    first, second = draw(3), draw(3)
    torch.manual_seed(5)
    assert torch.equal(draw(3), first) and torch.equal(draw(3), second)


@pytest.mark.parametrize("draw", FACES.values(), ids=FACES)
def test_a_seed_leaves_the_generator_of_torch_alone(draw):
    state = torch.get_rng_state()
    drawn = draw(3, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert torch.equal(drawn, draw(3, seed=1))


def test_integers_of_numpy_are_seeds():
    for kind in (np.int64, np.int32, np.uint8):
        assert torch.equal(plain(3, seed=kind(7)), plain(3, seed=7))
    assert make_key(np.int64(-3), "cpu").tolist() == [-3]
    for bad in (True, np.True_, 1.0, np.float64(1)):
        with pytest.raises(TypeError, match="seed must be an integer or None"):
            make_key(bad, "cpu")
    with pytest.raises(ValueError, match="must fit in int64"):
        make_key(np.uint64(2**63), "cpu")


def test_first_goes_on_where_an_earlier_call_ended():
    made = ardiff.ARSampler(MODEL, "ddpm", steps=4)
    whole = made.sample(7, seed=3).images
    parts = [made.sample(n, seed=3, first=first).images for first, n in ((0, 3), (3, 4))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-5)
    assert (parts[0] - parts[1][:3]).abs().max() > 0.1
    alone = list(made.stream(2, seed=3, first=2**43 - 2))[0].sample_ids
    assert alone.tolist() == [2**43 - 2, 2**43 - 1]


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"first": -1}, ValueError, "first must be in"),
        ({"first": 2**43 - 1}, ValueError, "first must be in"),
        ({"first": 0.5}, TypeError, "first must be an integer"),
        ({"first": 0, "sample_ids": [1, 2]}, ValueError, "pass one of them"),
    ],
)
def test_bad_firsts_are_named(options, kind, message):
    with pytest.raises(kind, match=message):
        ardiff.ARSampler(MODEL, "ddpm", steps=4).sample(2, **options)
