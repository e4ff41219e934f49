"""Solvers whose share of noise is an option, eta: its ends, between them, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

import ardiff
from ardiff.tables.paths import PATHS


@pytest.mark.parametrize("path", PATHS)
def test_ddim_with_eta_1_is_ddpm(path):
    """Song et al. 2021: the family's other end; between them the noise grows with eta."""
    options = {"path": path, "prediction": "sample", "steps": 12}
    ddpm = ardiff.solver("ddpm", **options).coefficients
    whole = ardiff.solver("ddim", **options, eta=1.0).coefficients
    np.testing.assert_allclose(whole, ddpm, rtol=1e-12, atol=1e-15)
    assert np.array_equal(
        ardiff.solver("ddim", **options).coefficients,
        ardiff.solver("ddim", **options, eta=0.0).coefficients,
    )
    half = ardiff.solver("ddim", **options, eta=0.5)
    ratio = half.column("x_n")[:-1] / ardiff.solver("ddpm", **options).column("x_n")[:-1]
    np.testing.assert_allclose(ratio, 0.5, rtol=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_the_noiseless_dpmpp_2m_sde_is_dpmpp_2m(path):
    """eta = 0 is the ODE; heun's correction is another of the same order."""
    options = {"path": path, "prediction": "sample", "steps": 30}
    ode = ardiff.solver("dpmpp-2m", **options)
    quiet = ardiff.solver("dpmpp-2m-sde", **options, eta=0.0)
    assert not quiet.column("x_n").any()
    np.testing.assert_allclose(quiet.column("x_x"), ode.column("x_x"), rtol=1e-12, atol=1e-15)
    whole = [table.column("x_0") + table.column("x_m") for table in (quiet, ode)]
    np.testing.assert_allclose(*whole, rtol=1e-9, atol=1e-12)
    heun = ardiff.solver("dpmpp-2m-sde", **options, eta=0.0, solver_type="heun")
    gap = np.abs(heun.column("x_m") - quiet.column("x_m"))
    assert 0 < gap.max() < 0.1


@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m-sde"])
def test_eta_must_be_a_number_from_0_up(name):
    for eta in (-0.1, math.inf, math.nan, "1", True):
        with pytest.raises(ValueError, match=f"{name}: eta must be finite and not negative"):
            ardiff.solver(name, path="edm", prediction="sample", steps=5, eta=eta)
    if name == "dpmpp-2m-sde":
        with pytest.raises(ValueError, match="unknown solver_type 'x'; known: midpoint, heun"):
            ardiff.solver(name, path="edm", prediction="sample", steps=5, solver_type="x")
