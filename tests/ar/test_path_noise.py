"""``noise="path"`` of an `ARSampler`: more steps of a seed refine its images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ardiff


@pytest.fixture(scope="module")
def model():
    return ardiff.load("sun-shadow")


def images(model, solver: str, steps: int | list[int], seed: int, noise: str = "path") -> Tensor:
    return ardiff.ARSampler(model, solver, steps, noise=noise).sample(32, seed=seed).images


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().flatten(1).sum(1).sqrt().mean())


@pytest.mark.parametrize("solver", ["dpmpp-2m-sde", "flow-sde"])
def test_more_steps_of_a_seed_make_nearly_its_images(model, solver):
    """Nearer than another seed's by 5, which step noise is not; fixed seeds."""
    first = images(model, solver, 20, 0)
    assert 5 * distance(first, images(model, solver, 40, 0)) < distance(
        first, images(model, solver, 40, 1)
    )
    first = images(model, solver, 20, 0, "step")
    assert 5 * distance(first, images(model, solver, 40, 0, "step")) > distance(
        first, images(model, solver, 40, 1, "step")
    )


def test_images_alone_and_steps_per_patch(model):
    sampler = ardiff.ARSampler(model, "ddpm", [6, 9, 6, 12], noise="path")
    whole = sampler.sample(4, seed=2).images
    assert torch.allclose(sampler.sample(2, seed=2, first=2).images, whole[2:], atol=1e-4)
    by_step = ardiff.ARSampler(model, "ddpm", [6, 9, 6, 12]).sample(4, seed=2).images
    assert not torch.allclose(by_step, whole, atol=0.1)


def test_solvers_without_a_path_are_refused_at_once(model):
    with pytest.raises(ValueError, match='noise="path" needs a solver of diffusion rows alone'):
        ardiff.ARSampler(model, "rtk-uld", noise="path")
    with pytest.raises(ValueError, match="unknown noise 'time'; known: step, path"):
        ardiff.ARSampler(model, noise="time")
