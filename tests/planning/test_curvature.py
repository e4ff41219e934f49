"""The curvature found is that of laws whose Hessian is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ardiff.data.mixture import GaussianMixture, random_mixture
from ardiff.guide import Guidance
from ardiff.noise import make_key, make_stream
from ardiff.planning.curvature import curvature, hessian, krylov, normals
from ardiff.planning.model_score import Score
from ardiff.tables.paths import PATHS, PREDICTIONS, get_path

D = 12
STD = torch.logspace(-1, 0, D, dtype=torch.float64)
GAUSSIAN = GaussianMixture(torch.zeros(1, D), (STD**2)[None])


def known(found, std=STD):
    """The ends of the spectrum of N(0, diag(std^2)) at the levels of `found`."""
    each = 1 / (found.alpha[:, None] ** 2 * std.numpy() ** 2 + found.sigma[:, None] ** 2)
    return each.max(1), each.min(1)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_the_ends_of_a_gaussian(path, prediction):
    """To 1%, from levels far above the data's scale to a tenth of its smallest. The control: the
    Gaussian with 1.03 times the scale, whose curvature differs by up to 6%, is told from it."""
    levels = get_path(path).level(np.array([20.0, 1.0, 0.1, 0.03]))
    options = {"path": path, "prediction": prediction, "levels": levels, "iterations": D}
    found = curvature(GAUSSIAN.model(path, prediction), D, **options)
    for ends, right in zip((found.largest, found.lowest.min(1)), known(found), strict=True):
        assert np.all(np.abs(ends - right) < 0.01 * right + found.resolution)
    assert np.all(found.resolution < 0.01 * found.largest) and found.asymmetry.max() < 0.02
    other = known(found, 1.03 * STD)[0]
    assert np.abs(found.largest / other - 1).max() > 0.02


def test_few_iterations_in_many_dimensions():
    """8 products find the largest of 2,000 eigenvalues to 5%, from below; the last iterate of power
    iteration alone, the control, is further off."""
    d = 2000
    std = torch.logspace(-1, 0, d, dtype=torch.float64)
    model = GaussianMixture(torch.zeros(1, d), (std**2)[None]).model("ou", "epsilon")
    levels = get_path("ou").level(np.array([1.0, 0.1, 0.03]))
    found = curvature(model, d, path="ou", prediction="epsilon", levels=levels, samples=4)
    right = known(found, std)[0]
    assert np.all(found.largest < 1.002 * right) and np.all(found.largest > 0.95 * right)
    h = (1 / (found.alpha[-1] ** 2 * std**2 + found.sigma[-1] ** 2))[None]
    u = torch.randn(4, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for _ in range(7):
        u = h * u / (h * u).norm(dim=1, keepdim=True)
    assert float((u * h * u).sum(1).max()) < 0.95 * right[-1]


def mixture_hessian(mixture, x, alpha, sigma):
    """Of -log p at a state, by automatic differentiation in float64."""

    def energy(x):
        one = torch.ones(1, dtype=torch.float64)
        return -mixture.log_density(x[None], alpha * one, sigma * one)[0]

    return torch.autograd.functional.hessian(energy, x)


def score_of(model, shape, path, prediction, condition=None, guided=None):
    guided = Guidance() if guided is None else guided
    return Score(model, shape, get_path(path), prediction, condition, guided)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("sigma", [1.0, 0.3, 0.1])
def test_the_hessian_of_a_mixture(seed, sigma):
    """Products and both ends at states about the modes, against automatic differentiation. The
    control is the Hessian of the noise alone, 1 / sigma^2."""
    mixture = random_mixture(seed)
    d = mixture.means.shape[1]
    generator = torch.Generator().manual_seed(seed)
    x0 = mixture.sample(6, generator)
    x = (x0 + sigma * torch.randn(x0.shape, generator=generator, dtype=torch.float64)).float()
    score = score_of(mixture.model("edm", "sample"), (6, d), "edm", "sample")
    exact = torch.stack([mixture_hessian(mixture, each, 1.0, sigma) for each in x.double()])
    start = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    product = hessian(score, x, sigma, sigma)
    space = krylov(product, start, min(d, 10))

    def off(space):
        right = torch.einsum("bij,bmj->bmi", exact, space.basis)
        return float((space.image - right).norm() / right.norm())

    assert off(space) < 0.01
    noise = krylov(lambda u: u / sigma**2, start, min(d, 10))
    assert off(noise) > 0.03
    values = torch.linalg.eigvalsh(exact)
    highest, lowest = space.ends()
    slack = 0.01 * values.abs().amax(1)
    assert bool((highest < values[:, -1] + slack).all() and (lowest > values[:, 0] - slack).all())
    if d <= 10:  # the space is all
        torch.testing.assert_close(highest, values[:, -1], rtol=0.01, atol=0.01 / sigma**2)
        torch.testing.assert_close(lowest, values[:, 0], rtol=0.01, atol=0.01 / sigma**2)


def test_a_krylov_space():
    """Orthonormal, its powers those of the matrix, complete after d products, and not before."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(3, 6, 6, generator=generator, dtype=torch.float64)
    matrix = matrix + matrix.mT
    start = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    space = krylov(lambda u: torch.einsum("bij,bj->bi", matrix, u), start, 6)
    eye = torch.eye(6, dtype=torch.float64).expand(3, 6, 6)
    torch.testing.assert_close(space.basis @ space.basis.mT, eye)
    values = torch.linalg.eigvalsh(matrix)
    torch.testing.assert_close(space.ends(), (values[:, -1], values[:, 0]))
    for count, power in enumerate(space.powers(start, 4)):
        right = torch.linalg.matrix_power(matrix, count) @ start[:, :, None]
        torch.testing.assert_close(power, right[..., 0])
    few = krylov(lambda u: torch.einsum("bij,bj->bi", matrix, u), start, 3).ends()[0]
    assert bool((few < values[:, -1] - 1e-3).all())


def test_a_space_of_one_direction():
    """An isotropic map shows nothing after the first product: no NaN, no direction twice."""
    space = krylov(lambda u: 2.0 * u, torch.ones(2, 5, dtype=torch.float64), 4)
    eye = torch.eye(4, dtype=torch.float64).expand(2, 4, 4)
    torch.testing.assert_close(space.basis @ space.basis.mT, eye)
    torch.testing.assert_close(space.ends()[1], torch.full((2,), 2.0, dtype=torch.float64))


def test_a_score_that_is_no_gradient():
    """A twist leaves the Rayleigh quotients and shows as asymmetry: |W| / |S| of S + W."""
    turn = torch.eye(D).roll(1, 0) - torch.eye(D).roll(-1, 0)

    def at(twist):
        def model(x, level, condition):
            return -x + twist * x @ turn

        return curvature(
            model, D, path="ou", prediction="score", levels=[2.0, 1.0], iterations=D, samples=3
        )

    straight, twisted = at(0.0), at(0.3)
    assert straight.asymmetry.max() < 1e-3
    right = 0.3 * float(turn.norm()) / D**0.5
    np.testing.assert_allclose(twisted.asymmetry, right, rtol=0.01)
    np.testing.assert_allclose(twisted.largest, 1.0, rtol=0.01)


def two_gaussians(x, level, condition):
    """The score of N(0, condition) on `edm`: condition `[B, 1]` or `[1, 1]`."""
    return -x / (condition + level[:, None] ** 2)


def test_guidance_is_that_of_the_sampler():
    """u2 + w2 (u - u2) + w (c - u), on scores of three Gaussians; w alone gives another value."""
    wide, mid, narrow = (torch.full((1, 1), value) for value in (4.0, 1.0, 0.25))
    h = lambda variance: 1 / (variance + 0.25)  # noqa: E731
    options = {"path": "edm", "prediction": "score", "levels": [2.0, 0.5], "condition": narrow}
    one = {"uncond": mid, "guidance": 2.0}
    found = curvature(two_gaussians, 3, **options, **one)
    np.testing.assert_allclose(found.largest[1], h(1) + 2 * (h(0.25) - h(1)), rtol=1e-3)
    assert found.calls == 2 * (2 + 4 * 3)  # at most d = 3 products, two outputs each
    two = {"uncond2": wide, "guidance2": 0.5}
    found = curvature(two_gaussians, 3, **options, **one, **two)
    right = h(4) + 0.5 * (h(1) - h(4)) + 2 * (h(0.25) - h(1))
    np.testing.assert_allclose(found.largest[1], right, rtol=1e-3)
    plain = curvature(two_gaussians, 3, **options)
    assert abs(plain.largest[1] / right - 1) > 0.2


def test_a_coarse_model():
    """Outputs in bfloat16 get longer differences. The control's are rounded as much and do not say
    so: the differences are of rounding alone."""
    exact = GAUSSIAN.model("edm", "epsilon")

    def find(kind):
        def model(x, level, condition):
            return exact(x, level, condition).bfloat16().to(kind)

        return curvature(
            model, D, path="edm", prediction="epsilon", levels=[4.0, 1.0], iterations=D
        )

    found, silent = find(torch.bfloat16), find(torch.float32)
    np.testing.assert_allclose(found.largest, known(found)[0], rtol=0.2)
    assert np.abs(silent.largest / known(silent)[0] - 1).min() > 0.5


class Hoisted:
    """The Gaussian's model with `hoist` alone, which counts its calls."""

    def __init__(self):
        self.model, self.calls = GAUSSIAN.model("flow", "flow"), 0

    def hoist(self, levels, condition):
        def call(row, x):
            self.calls += 1
            return self.model(x, levels[row].expand(len(x)), condition)

        return call


def test_a_hoisted_model_is_the_same_and_calls_are_counted():
    options = {"path": "flow", "prediction": "flow", "levels": [0.9, 0.5, 0.1], "iterations": 4}
    model = Hoisted()

    def image(x, level, condition):
        return model.model(x.flatten(1), level).view_as(x)

    found, plain = curvature(model, D, **options), curvature(image, (3, 4), **options)
    np.testing.assert_array_equal(found.highest, plain.highest)
    assert found.calls == plain.calls == model.calls == 3 * (1 + 2 * 4)
    assert found.states == 16 * found.calls
    assert found.as_dict()["largest"] == found.largest.tolist() and "0.5" in str(found)
    assert not np.array_equal(curvature(model, D, seed=1, **options).highest, found.highest)


def test_directions_differ_from_the_states():
    """The draws of states and directions do not share noise."""
    key, stream = make_key(0, "cpu"), make_stream(range(3), 3, 0, "cpu")
    assert not torch.equal(normals(key, stream, 5, 0), normals(key, stream, 5, 1))


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"levels": [0.1, 0.5]}, "levels must be two or more, decreasing"),
        ({"levels": [0.5, 0.0]}, "levels must end above the data"),
        ({"levels": "many"}, "levels must be numbers, or how many, got 'many'"),
        ({"levels": 1}, "levels must be an integer of 2 or more, got 1"),
        ({"iterations": float("nan")}, "iterations must be an integer of 1 or more, got nan"),
        ({"device": "gpu"}, "device must be one that torch has here, got 'gpu'"),
        ({"iterations": 0}, "iterations must be an integer of 1 or more"),
        ({"samples": 0}, "samples must be an integer of 1 or more"),
        ({"prediction": "noise"}, "unknown prediction 'noise'"),
        ({"guidance": 2.0}, "guidance and uncond go together"),
    ],
)
def test_errors_before_the_model_is_called(options, problem):
    def model(x, level, condition):
        raise AssertionError("called")

    with pytest.raises(ValueError, match=problem):
        curvature(model, 2, **{"path": "flow", "prediction": "flow", **options})


def test_a_score_that_is_not_finite():
    def model(x, level, condition):
        return x * torch.where(level < 0.3, torch.nan, 1.0)[:, None]

    with pytest.raises(FloatingPointError, match="score at level 0.2 is NaN or infinite"):
        curvature(model, 2, path="flow", prediction="flow", levels=[0.9, 0.2])
    with pytest.raises(TypeError, match="model_fn must be callable"):
        curvature(None, 2, path="flow", prediction="flow")
