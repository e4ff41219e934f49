"""The spectral radius of inner steps: their matrices are those of the rows that run, the radius
says whether a run stays finite, and the largest step is where that changes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import ardiff
from ardiff.planning.stability import CHECKED, KINETIC, check_step, step_matrix
from ardiff.tables.columns import COLUMNS
from ardiff.tables.paths import get_path, transition
from ardiff_kernels import host

RANGES = [(1.0, 3.0), (0.01, 1.0), (2.0, 2.0)]
LEVELS = [1.0, 0.6, 0.3]  # of the OU path: two stages
VARIANCE = 0.5  # of the data


def stages() -> list[tuple[float, float]]:
    """(width of the envelope, curvature of the kernel) of each stage, for Gaussian data."""
    path, found = get_path("ou"), []
    for a, b in zip(LEVELS[:-1], LEVELS[1:], strict=True):
        t = transition(path, a, b)
        found.append((t.width, t.r**2 / t.s2 + 1 / (t.alpha_b**2 * VARIANCE + t.sigma_b**2)))
    return found


def table(solver: str, tau: float, gamma: float | None, inner: int) -> ardiff.StepTable:
    """A table of two stages; tau and gamma are in units of the stages' envelopes."""
    options, steps = {"gamma": gamma} if solver in KINETIC else {}, 2 * inner + 8
    if solver == "rtk-hmc":
        options["leapfrog"], inner = inner, 1
    return ardiff.solver(
        solver, path="ou", prediction="score", steps=steps, grid=LEVELS, inner=inner,
        stages=2, tau=tau, denoise_last=False, **options,
    )  # fmt: skip


def row_matrix(row: np.ndarray, op: str, level: float) -> np.ndarray:
    """What a row of a table does to the state and velocity, on Gaussian data: the model's output
    is -x / (alpha^2 VARIANCE + sigma^2), the anchor stays."""
    c = dict(zip(COLUMNS[op], row, strict=False))
    path = get_path("ou")
    out = -1 / float(path.alpha(level) ** 2 * VARIANCE + path.sigma(level) ** 2)
    if op == "diffusion":
        return np.array([[c["x_x"] + c["x_d"] + c["x_0"] * (c["p_x"] + c["p_o"] * out)]])
    return np.array(
        [
            [c["z_z"] + c["z_d"] + c["z_o"] * out, c["z_v"]],
            [c["v_z"] + c["v_d"] + c["v_o"] * out, c["v_v"]],
        ]
    )


@pytest.mark.parametrize("solver", CHECKED)
def test_the_matrix_is_that_of_the_rows_that_run(solver: str) -> None:
    width, curvature = stages()[-1]
    made = table(solver, 0.37, 1.3, inner=4)
    last = [i for i, level in enumerate(made.level) if level == LEVELS[-1]]
    inner = [i for i in last if made.op[i] != "accept"]
    row = inner[2]  # neither the first nor the last of its stage
    unit = width**2 if solver in ("rtk-ula", "rtk-mala") else width
    expected = step_matrix(solver, curvature, 0.37 * unit, 1.3 / width)
    found = row_matrix(made.coefficients[row], made.op[row], LEVELS[-1])
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("solver", ["rtk-ula", "rtk-uld", "rtk-baoab", "rtk-obabo", "rtk-ubu"])
@pytest.mark.parametrize(("factor", "stable"), [(0.97, True), (1.03, False)])
def test_a_run_stays_finite_up_to_the_largest_tau(solver, factor, stable) -> None:
    """400 inner steps in each of two stages. Unstable ones multiply an error by 1.03^400 = 1e5 or
    more; stable ones leave some times the standard deviation of the kernel, which is below 1."""
    ends = sorted(curvature * width**2 for width, curvature in stages())
    most = check_step(solver, *ends, tau=1e-3, gamma=2.0).largest_tau

    def model(x: torch.Tensor, level: torch.Tensor, _) -> torch.Tensor:
        t = level.double()[:, None]
        return (-x / (torch.exp(-2 * t) * (VARIANCE - 1) + 1)).float()

    made = table(solver, factor * most, 2.0, inner=400)
    drawn = ardiff.sample(model, (64, 2), table=made, seed=1, nonfinite="ignore")
    size = float(drawn.abs().max())
    assert (size < 100) if stable else not size < 1e4


# lambda Var z, Var v and Cov, stationary: a solution of S = M S M^T + Q to 13 digits
STATIONARY = {
    (2.0, 0.1, 1.0): (1.0256192143605, 1.0255362061269, 4.2531996978e-5),
    (2.0, 0.5, 1.0): (1.1398065486758, 1.1302452863831, 5.3385398173e-3),
    (5.0, 0.3, 2.0): (1.0630029207589, 1.0537296332066, 1.9431362166e-3),
}


@pytest.mark.parametrize("case", STATIONARY)
def test_the_matrix_has_the_known_stationary_law(case) -> None:
    gamma, tau, curvature = case
    c = host.uld_coefficients(gamma, tau)
    noise = np.array([[c["var_z"], c["cov_zv"]], [c["cov_zv"], c["var_v"]]])
    m = step_matrix("rtk-uld", curvature, tau, gamma)
    law = np.linalg.solve(np.eye(4) - np.kron(m, m), noise.ravel())
    found = (curvature * law[0], law[3], law[1])
    assert found == pytest.approx(STATIONARY[case], rel=1e-9)


@pytest.mark.parametrize("solver", CHECKED)
@pytest.mark.parametrize(("low", "high"), RANGES)
@pytest.mark.parametrize("gamma", [0.1, 2.0, 20.0])
def test_radius_and_largest_tau_against_a_dense_scan(solver, low, high, gamma) -> None:
    """Of curvatures between the ends, and of steps on both sides of the largest one."""

    def radius(tau: float) -> float:
        inside = (step_matrix(solver, c, tau, gamma) for c in np.geomspace(low, high, 33))
        return max(np.abs(np.linalg.eigvals(matrix)).max() for matrix in inside)

    found = check_step(solver, low, high, tau=0.3, gamma=gamma)
    assert found.radius == pytest.approx(radius(0.3), abs=1e-7)
    bound = 1 + 1e-7 if solver == "rtk-hmc" else 1.0
    for factor in (0.02, 0.3, 0.7, 0.999):
        assert radius(factor * found.largest_tau) <= bound
    for factor in (1.001, 1.3, 2.0, 5.0):
        assert radius(factor * found.largest_tau) > bound
    assert found.stable == (found.largest_tau > 0.3)


def test_steps_whose_bound_is_known() -> None:
    """ULA: 2 / l. Leapfrog, BAOAB and OBABO, a leapfrog inside: 2 / l^(1/2)."""
    for solver in ("rtk-ula", "rtk-mala"):
        assert check_step(solver, 0.5, 8.0, tau=0.1).largest_tau == pytest.approx(0.25)
    for solver in ("rtk-hmc", "rtk-baoab", "rtk-obabo"):
        found = check_step(solver, 0.5, 4.0, tau=0.1, gamma=2.0)
        assert found.largest_tau == pytest.approx(1.0)
    leapfrog = check_step("rtk-hmc", 0.5, 4.0, tau=0.9)
    assert leapfrog.stable and leapfrog.radius == pytest.approx(1.0) and leapfrog.gamma is None


@pytest.mark.parametrize("solver", CHECKED)
def test_no_step_settles_where_the_kernel_is_not_log_concave(solver: str) -> None:
    for low in (-0.1, 0.0):
        found = check_step(solver, low, 1.0, tau=0.01, gamma=2.0)
        assert not found.stable and found.largest_tau == 0
    assert check_step(solver, 0.1, 1.0, tau=0.01, gamma=2.0).stable


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="no step matrix of 'ddpm'; known: rtk-ula"):
        step_matrix("ddpm", 1.0, 0.1)
    with pytest.raises(ValueError, match="rtk-uld: gamma must be positive and finite, got None"):
        check_step("rtk-uld", 1.0, 2.0, tau=0.1)
    with pytest.raises(ValueError, match="tau must be positive and finite, got 0"):
        check_step("rtk-ula", 1.0, 2.0, tau=0)
    for low, high in ((2.0, 1.0), (-2.0, -1.0), (1.0, math.inf), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="expected finite curvatures"):
            check_step("rtk-ula", low, high, tau=0.1)
