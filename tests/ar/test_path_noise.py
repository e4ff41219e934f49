"""``noise="path"`` of an `ARSampler`: more steps of a seed refine its images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ardiff


@pytest.fixture(scope="module")
def model():
    return ardiff.load("sun-shadow")


def images(model, solver: str, steps: int, seed: int, noise: str) -> Tensor:
    return ardiff.ARSampler(model, solver, steps, noise=noise).sample(16, seed=seed).images


@pytest.mark.parametrize(("solver", "average"), [("dpmpp-2m-sde", "median"), ("flow-sde", "mean")])
def test_more_steps_of_a_seed_make_nearly_its_images(model, solver, average):
    """Nearer than another seed's by 5, which step noise is not; fixed seeds. The median of
    dpmpp-2m-sde, since its mean is that of the few images that take another mode."""

    def ratio(noise: str) -> float:
        first = images(model, solver, 20, 0, noise)
        apart = [first - images(model, solver, 40, seed, noise) for seed in (0, 1)]
        same, other = (getattr(each.flatten(1).norm(dim=1), average)() for each in apart)
        return float(other / same)

    assert ratio("path") > 5 > ratio("step")


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
