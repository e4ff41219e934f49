"""The exact law of a table on Gaussian data against the loop's own samples, for every solver.

Per axis the z-scores of the mean and of the variance of 2^15 samples: 2 x 3 axes x 38 solvers, each
beyond 6.3 with a chance below 4e-10 times 2 (the variance's chi-square tail included: its skewness,
sqrt(8 / 2^15), raises the normal tail by a factor of 2 there), so that the file's false-alarm rate
is below 1e-6. The control: moved by a tenth of a standard deviation, or wider by a tenth, a law is
rejected.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import ardiff
from ardiff.loop.run import run
from ardiff.noise import initial_state, make_key, make_stream
from ardiff.solvers import SOLVERS, solver_options
from ardiff.study.gaussian_law import Law, law_of, noised
from ardiff.tables.paths import get_path, output_from_data
from tests._support.solver_problem import Problem, run_table

SAMPLES, Z_MAX = 2**15, 6.3
VARIANCES, MEAN = np.array([1.5, 0.2, 0.01]), np.array([0.3, -0.8, 0.1])
LINEAR = [name for name in SOLVERS if "accept" not in solver_options(name)]
PLACES = (("ou", "score"), ("edm", "sample"), ("flow", "flow"), ("vp-cosine", "v_prediction"))


def model_of(path, prediction, variances, mean):
    path, variances, mean = get_path(path), torch.tensor(variances), torch.tensor(mean)

    def model(x, level, condition):
        at = level[:1].double().numpy()
        alpha, sigma = (float(f(at)[0]) for f in (path.alpha, path.sigma))
        x = x.double()
        gain = alpha * variances / (alpha**2 * variances + sigma**2)
        x0 = mean + gain * (x - alpha * mean)
        return output_from_data(prediction, alpha, sigma, x, x0).float()

    return model


def scores(found: torch.Tensor, law: Law) -> np.ndarray:
    """z-scores of means and variances of samples `[B, D]`."""
    x = found.double().numpy()
    mean = (x.mean(0) - law.mean) / np.sqrt(law.variance / len(x))
    spread = ((x - law.mean) ** 2).mean(0) / law.variance - 1
    return np.concatenate([mean, spread / np.sqrt(2 / len(x))])


def drawn(table, path, prediction, samples=SAMPLES):
    key, stream = make_key(5, "cpu"), make_stream(None, samples, 0, "cpu")
    x = initial_state(table, key, stream, len(VARIANCES))
    return run(table, model_of(path, prediction, VARIANCES, MEAN), x, key=key, stream=stream)


@pytest.mark.parametrize("name", LINEAR)
def test_the_law_is_that_of_the_loops_samples(name):
    path, prediction = PLACES[LINEAR.index(name) % len(PLACES)]
    for denoise_last in (True, False):
        table = ardiff.solver(
            name, path=path, prediction=prediction, steps=14, ratio_min=0.1,
            denoise_last=denoise_last,
        )  # fmt: skip
        found, law = drawn(table, path, prediction), law_of(table, VARIANCES, MEAN)
        assert np.abs(scores(found, law)).max() < Z_MAX
        shifted = Law(law.mean + 0.1 * np.sqrt(law.variance), law.variance)
        wider = Law(law.mean, 1.1 * law.variance)
        assert np.abs(scores(found, shifted)[:3]).min() > Z_MAX
        assert np.abs(scores(found, wider)[3:]).min() > Z_MAX


class Impulses(Problem):
    """Gaussian data, in float64: element 0 starts at the mean's response, element 1 at 1 with data
    of mean 0, and each other has one normal of one row 1 and all else 0."""

    def __init__(self, table, variance, mean):
        super().__init__(table.path)
        size = 2 + 2 * len(table)
        self.variance, self.mean = variance, np.where(np.arange(size) == 0, mean, 0.0)
        self.start = np.eye(size)[1]
        self.normals = np.zeros((len(table), 2, size))
        rows, which = np.divmod(np.arange(2 * len(table)), 2)
        self.normals[rows, which, 2 + np.arange(2 * len(table))] = 1

    def denoise(self, x, level):
        alpha, sigma = self.at(level)
        gain = alpha * self.variance / (alpha**2 * self.variance + sigma**2)
        return self.mean + gain * (x - alpha * self.mean)


@pytest.mark.parametrize("name", LINEAR)
def test_the_law_is_that_of_the_rows_responses(name):
    """A run is linear in its start and its normals: its variance is the sum of the squares of its
    responses to each alone, by the ops' own float64 reference. No chance here."""
    path, prediction = PLACES[(LINEAR.index(name) + 1) % len(PLACES)]
    table = ardiff.solver(name, path=path, prediction=prediction, steps=14, ratio_min=0.1)
    law = law_of(table, VARIANCES, MEAN)
    for i, (variance, mean) in enumerate(zip(VARIANCES, MEAN, strict=True)):
        response = run_table(table, Impulses(table, variance, mean))
        np.testing.assert_allclose(law.mean[i], response[0], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(law.variance[i], np.sum(response[1:] ** 2), rtol=1e-9)


def test_distances_of_gaussians():
    """Against numerical integrals, along each axis."""
    one, other = Law(np.array([0.3, 0.0]), np.array([2.0, 0.5])), noised(0.8, 0.6, [1.0, 0.0])
    np.testing.assert_allclose(other.variance, [1.0, 0.36])
    x = np.linspace(-12, 12, 400_001)
    for i in range(2):
        p, q = (
            np.exp(-((x - law.mean[i]) ** 2) / (2 * law.variance[i])) / np.sqrt(law.variance[i])
            for law in (one, other)
        )
        p, q = p / p.sum(), q / q.sum()
        inside = p > 1e-300
        kl = np.sum(p[inside] * np.log(p[inside] / q[inside]))
        np.testing.assert_allclose(one.kl(other)[i], kl, rtol=1e-6)
        share = (np.arange(200_000) + 0.5) / 200_000
        quantiles = [np.interp(share, np.cumsum(f), x) for f in (p, q)]
        w2 = np.mean((quantiles[0] - quantiles[1]) ** 2)
        np.testing.assert_allclose(one.w2(other)[i], w2, rtol=1e-3)


def test_what_has_no_exact_law_is_refused():
    options = {"path": "ou", "prediction": "score", "steps": 14}
    with pytest.raises(ValueError, match="rtk-mala accepts or rejects.* measure samples"):
        law_of(ardiff.solver("rtk-mala", **options), VARIANCES)
    for wrong in (np.array([1.0, -0.1]), np.array([np.nan]), np.float64(1)):
        with pytest.raises(ValueError, match="variances must be a vector of numbers of 0 or more"):
            law_of(ardiff.solver("ddpm", **options), wrong)
    unknown = dataclasses.replace(
        ardiff.solver("ddpm", **options), path="x", alpha=None, sigma=None
    )
    with pytest.raises(ValueError, match="the path x is none of this package's"):
        law_of(unknown, VARIANCES)
