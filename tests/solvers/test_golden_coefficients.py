"""The rows of the underdamped-Langevin solver against 60-digit coefficients, within 2e-15 relative;
test_host.py has the coefficients themselves."""

from __future__ import annotations

import pytest

from ardiff.solvers import rtk_uld
from ardiff.solvers._rtk import stages as rtk
from ardiff.tables.paths import transition
from tests.kernels.test_host import golden as load

GOLDEN = load("uld_coefficients")["rows"]


@pytest.mark.parametrize("index", range(len(GOLDEN)))
def test_golden_coefficients_through_rows_on_a_quadratic_potential(index):
    """score(z) = -lam z at level b: the row's drift and covariance are golden."""
    golden = {key: float(value) for key, value in GOLDEN[index].items()}
    t = transition("ou", 1.0, 0.5)
    move = rtk_uld.move(golden["gamma"], golden["tau"])
    c = rtk.kinetic_columns("score", t, move)
    lam, q = 1.25, t.r**2 / t.s2
    # G = lam z + q (z - anchor): the parts of z' and v' that multiply G, and those that do not
    for part in ("z", "v"):
        from_score, from_anchor = c[f"{part}_o"] * -lam, c[f"{part}_d"]
        assert from_score / lam == pytest.approx(golden[f"{part}_from_grad"], rel=2e-15, abs=0)
        assert from_anchor / q == pytest.approx(golden[f"{part}_from_grad"], rel=2e-15, abs=0)
        assert c[f"{part}_v"] == pytest.approx(golden[f"{part}_from_v"], rel=2e-15, abs=0)
    assert c["z_z"] == 1 and c["v_z"] == 0
    assert c["z_1"] ** 2 + c["z_2"] ** 2 == pytest.approx(golden["var_z"], rel=2e-15, abs=0)
    assert c["z_1"] * c["v_1"] == pytest.approx(golden["cov_zv"], rel=2e-15, abs=0)
    assert c["v_1"] ** 2 == pytest.approx(golden["var_v"], rel=2e-15, abs=0)
