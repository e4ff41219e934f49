"""The curvature of a plan's problem is that of its data, on every path, in OU units."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ardiff.ar.sampler import load
from ardiff.data.mixture import GaussianMixture
from ardiff.models.image_model import ModelConfig
from ardiff.planning import problem as problem_module
from ardiff.planning.contexts import contexts_of
from ardiff.planning.problem import given_problem, load_problem, measured_problem

VARIANCES = (1.2, 0.02)  # of the data, along different axes


def gaussian(path: str, monkeypatch) -> SimpleNamespace:
    """What is measured of a model, with the exact score of Gaussian patches."""
    config = ModelConfig(image_size=4, patch_size=2, path=path, ratio_max=30.0, ratio_min=0.1)
    variances = torch.tensor([[VARIANCES[i % 2] for i in range(config.patch_dim)]])
    data = GaussianMixture(torch.zeros(1, config.patch_dim), variances)
    contexts = torch.zeros(problem_module.SAMPLES, 3)
    monkeypatch.setattr(problem_module, "contexts_of", lambda *_: contexts)
    return SimpleNamespace(
        config=config, patch_dim=config.patch_dim, null=None, denoiser=data.model(path, "sample")
    )


@pytest.mark.parametrize("path", ["vp-cosine", "edm", "flow", "ou"])
def test_curvature_of_gaussian_data_is_the_known_one(path: str, monkeypatch) -> None:
    found = measured_problem(gaussian(path, monkeypatch), None, seed=1)
    ratio = np.geomspace(30.0, 0.1, 12)
    sigma2 = ratio**2 / (1 + ratio**2)  # on the OU path
    low, high = (1 / ((1 - sigma2) * v + sigma2) for v in VARIANCES)
    low, high = np.minimum(low, high), np.maximum(low, high)
    L = high.max()
    assert L == pytest.approx(1 / (0.02 / 1.01 + 0.01 / 1.01))
    assert found.lipschitz == pytest.approx(L, rel=0.01)
    assert found.kernel == pytest.approx((2 * L + low.min(), 3 * L), rel=0.01)
    width2 = 1 / (2 * L + 1 / sigma2)
    expected = (((2 * L + low) * width2).min(), ((2 * L + high) * width2).max())
    assert found.envelope == pytest.approx(expected, rel=0.01)
    assert found.smallest == pytest.approx((0.02 + 0.1**2) ** 0.5, rel=0.01)
    assert found.horizon == pytest.approx(0.5 * np.log1p(30.0**2), rel=1e-6)
    assert (found.dim, found.patches, found.patch_dim) == (48, 4, 12)


def test_what_is_given_is_the_theory_s_range() -> None:
    found = given_problem("ou", 8, 2, 5.0)
    assert found.kernel == pytest.approx((5.0, 15.0))
    assert found.envelope[1] == 1.0 and 0 < found.envelope[0] < 1e-4
    assert found.curvature is None and found.patch_dim == 4


def test_the_shipped_model_is_measured_unless_l_is_given(monkeypatch) -> None:
    found = load_problem("sun-shadow", None, None, seed=0)
    sigma = found.curvature.sigma
    assert np.all(found.curvature.largest < 1.1 / sigma**2)
    assert found.lipschitz > 100  # 0.05 is the clean end: 1 / sigma^2 is 400 there
    monkeypatch.setattr(problem_module, "curvature", lambda *_, **__: pytest.fail("was measured"))
    given = load_problem("sun-shadow", 7.0, None, seed=0)
    assert (given.lipschitz, given.dim, given.patches) == (7.0, 3072, 4)
    assert given.horizon == pytest.approx(found.horizon)


def test_contexts_are_those_of_images_that_the_model_draws() -> None:
    model = load("sun-shadow")
    found = [contexts_of(model, 16, None, seed) for seed in (0, 0, 1)]
    assert found[0].shape == (16, model.config.context_width)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_guidance_of_a_model_without_it_is_refused() -> None:
    with pytest.raises(ValueError, match="guidance: the model was trained without context dropout"):
        load_problem("sun-shadow", None, 2.0, seed=0)
