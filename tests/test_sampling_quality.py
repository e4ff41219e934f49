"""Every solver on every path reaches a Gaussian mixture with the exact score.

The distance is sliced W2 over eight directions to exact quantiles, of 4096 samples. For exact
draws its mean square is at most 0.0013 (400 repeats), a weighted sum of chi-squares whose tail past
w is at most exp(-w^2 / 0.0026). The solvers' own bias at 48 calls is below 0.09, so that the bound
0.3 has a false-alarm rate of exp(-0.21^2 / 0.0026) = 4e-8 a case; noise is addressed, so that a run
repeats.
"""

from __future__ import annotations

import pytest
import torch

import ardiff
from ardiff.data.mixture import GaussianMixture
from ardiff.paths import PATHS, PREDICTIONS
from ardiff.solvers import SOLVERS

BOUND = 0.3
SAMPLES = 4096
STEPS = 48


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def mixture():
    means = torch.tensor([[-1.0, 0.2], [1.0, 0.7], [0.1, -1.0]])
    variances = torch.tensor([[0.04, 0.09], [0.03, 0.02], [0.05, 0.05]])
    return GaussianMixture(means, variances, torch.tensor([0.3, 0.5, 0.2]))


@pytest.fixture(scope="module")
def distance(mixture):
    angle = torch.arange(8, dtype=torch.float64) * torch.pi / 8
    directions = torch.stack([angle.cos(), angle.sin()])
    truth = mixture.sample(16 * SAMPLES, torch.Generator().manual_seed(1))
    quantiles = (truth @ directions).sort(0).values.reshape(SAMPLES, 16, 8).mean(1)

    def sliced_w2(x):
        projected = (x.double() @ directions).sort(0).values
        return float((projected - quantiles).square().mean().sqrt())

    return sliced_w2


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_reaches_the_mixture(solver, path, mixture, distance):
    model = mixture.model(path, "sample")
    x = ardiff.sample(model, (SAMPLES, 2), path, "sample", solver, STEPS)
    assert distance(x) < BOUND


@pytest.mark.parametrize("solver", SOLVERS)
def test_negative_control_a_wrong_score(solver, mixture, distance):
    wrong = GaussianMixture(mixture.means + 0.5, mixture.variances, mixture.weights)
    x = ardiff.sample(wrong.model("ou", "sample"), (SAMPLES, 2), "ou", "sample", solver, STEPS)
    assert distance(x) > BOUND


def test_negative_control_exact_draws_and_too_little_noise(mixture, distance):
    assert distance(mixture.sample(SAMPLES, torch.Generator().manual_seed(2))) < BOUND
    model = mixture.model("ou", "sample")
    cold = ardiff.sample(model, (SAMPLES, 2), "ou", "sample", "ddpm", STEPS, temperature=0.5)
    assert distance(cold) > BOUND


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_predictions_give_the_same_samples(solver, path, mixture):
    """All five prediction types, to rounding: 95% of the elements within 5e-6, all within 3e-4.

    Data are of unit scale and outputs float32, so that epsilon or score carry x0 to ratio * 2^-24,
    2.4e-6 at the noisiest level (ratio 40). Where the score does not contract, on the ridges
    between modes, differences grow: 3e-5 is the largest seen.
    """
    outs = [
        ardiff.sample(mixture.model(path, kind), (256, 2), path, kind, solver, 24, seed=5)
        for kind in PREDICTIONS
    ]
    for out in outs[1:]:
        difference = (out - outs[0]).abs().flatten()
        assert float(difference.quantile(0.95)) < 5e-6 and float(difference.max()) < 3e-4


def test_predictions_negative_control(mixture):
    """A model taken for another prediction type is far off."""
    right = ardiff.sample(mixture.model("ou", "epsilon"), (64, 2), "ou", "epsilon", "ddim", 24)
    wrong = ardiff.sample(mixture.model("ou", "sample"), (64, 2), "ou", "epsilon", "ddim", 24)
    assert float((right - wrong).abs().max()) > 0.1
