"""Host numerics: golden coefficients, known Philox answers, and the pure Python twin."""

from __future__ import annotations

import json
import math
from decimal import Decimal

import pytest

from ardiff_kernels import _host_reference, host, testing
from tests import ROOT

GOLDEN = ROOT / "tests/golden"
IMPLEMENTATIONS = [pytest.param(host, id="compiled" if host.compiled else "fallback")]
IMPLEMENTATIONS += [pytest.param(_host_reference, id="python")]
EXACT = 2e-15


def golden(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def relative_error(value: float, exact: Decimal) -> float:
    return float(abs(Decimal(value) - exact) / abs(exact))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_golden_coefficients(implementation):
    rows = golden("uld_coefficients")["rows"]
    assert len(rows) > 20
    worst = {}
    for row in rows:
        ours = implementation.uld_coefficients(float(row["gamma"]), float(row["tau"]))
        for name in ours.keys() & row.keys():
            error = relative_error(ours[name], Decimal(row[name]))
            worst[name] = max(worst.get(name, 0.0), error)
    assert worst.keys() == {
        *("z_from_v", "z_from_grad", "v_from_v", "v_from_grad"),
        *("var_z", "cov_zv", "var_v"),
    }
    assert max(worst.values()) <= EXACT, worst


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_noise_factor_gives_the_covariance(implementation):
    for row in golden("uld_coefficients")["rows"]:
        c = implementation.uld_coefficients(float(row["gamma"]), float(row["tau"]))
        assert c["v_1"] ** 2 == pytest.approx(float(row["var_v"]), rel=3e-15)
        assert c["z_1"] * c["v_1"] == pytest.approx(float(row["cov_zv"]), rel=3e-15)
        assert c["z_1"] ** 2 + c["z_2"] ** 2 == pytest.approx(float(row["var_z"]), rel=3e-15)


def test_the_slides_variance_fails():
    """Negative control: the bracket as printed on the slide agrees at gamma = 2 only."""

    def slide(gamma: float, tau: float) -> float:
        x = gamma * tau
        bracket = tau - (2 / gamma) * -math.expm1(-x) + 0.5 / gamma * -math.expm1(-2 * x)
        return bracket

    errors = {
        row["gamma"]: relative_error(slide(float(row["gamma"]), float(row["tau"])), var)
        for row in golden("uld_coefficients")["rows"]
        if float(row["tau"]) >= 0.1 and (var := Decimal(row["var_z"]))
    }
    assert all((error < 1e-9) == (float(gamma) == 2) for gamma, error in errors.items()), errors


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "gamma, tau",
    [(0, 1), (1, 0), (-1, 1), (1, -0.5), (math.nan, 1), (1, math.nan), (math.inf, 1)],
)
def test_bad_gamma_or_tau(implementation, gamma, tau):
    expected = f"got gamma {float(gamma)!r} and tau {float(tau)!r}"
    with pytest.raises(ValueError, match=expected):
        implementation.uld_coefficients(gamma, tau)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_philox_known_answers(implementation):
    answers = golden("philox")
    for case in answers["random123"]:
        assert list(implementation.philox(case["ctr"], case["key"])) == case["out"]
    for case in answers["addressing"]:
        key = [case["key"] & 0xFFFFFFFF, (case["key"] >> 32) & 0xFFFFFFFF]
        stream = case["stream"]
        for name, quad in (("words_quad0", 0), ("words_quad5", 5)):
            counter = [quad, case["counter"], stream & 0xFFFFFFFF, (stream >> 32) & 0xFFFFFFFF]
            assert list(implementation.philox(counter, key)) == case[name]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "counter, key, message",
    [
        ([0, 0, 0], [0, 0], "got 3 and 2"),
        ([0, 0, 0, 0], [0], "got 4 and 1"),
        ([0, 0, 0, 2**32], [0, 0], "got 4294967296"),
        ([0, 0, 0, 0], [-1, 0], "got -1"),
    ],
)
def test_bad_philox_words(implementation, counter, key, message):
    with pytest.raises(ValueError, match=message):
        implementation.philox(counter, key)


def test_compiled_and_python_agree():
    if not host.compiled:
        pytest.skip("the host library is not built")
    for gamma in (0.3, 1.0, 2.0, 7.5):
        for tau in (1e-9, 1e-3, 0.4, 3.0):
            ours = host.uld_coefficients(gamma, tau)
            assert ours == pytest.approx(_host_reference.uld_coefficients(gamma, tau), rel=1e-14)
    info = host.build_info()
    assert info.keys() == {"compiler", "torch", "cuda"}
    assert info["compiler"].startswith(("gcc ", "clang ")) and info["torch"]


def test_features_are_those_of_the_processor():
    """The C++ kernels ask the processor itself; the features are read from the system."""
    features = host.cpu_features()
    vectors = bool(features) and features["avx2"] and features["fma"]
    assert not testing.cpu_isas() or ("avx2" in testing.cpu_isas()) == vectors
