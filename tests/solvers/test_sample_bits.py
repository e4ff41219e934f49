"""Samples have the bits that are recorded, on every backend and instruction set that runs here."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import ardiff
from ardiff.solvers import SOLVERS
from ardiff.table import COLUMNS
from tests._support.exact import ExactModel, digest, rounded_tables
from tests._support.sample_bits import CASES, PRINTS, bits, missing, recorded, tables
from tests._support.sample_cases import SHAPE, Case, ran, table_of

RECORD = recorded()
PLACE = ("ou", "score")
MODEL = ExactModel(*PLACE)


@pytest.mark.parametrize("name", CASES)
def test_a_sample_has_its_recorded_bits(name):
    case, wanted = CASES[name], RECORD["bits"][name]
    reason = missing(case)
    if reason:
        pytest.skip(reason)
    if case.depends:
        kind = PRINTS[case.depends]()
        if kind not in wanted:
            pytest.skip(f"no bits are recorded for machines of the kind {kind}")
        wanted = wanted[kind]
    found = bits(case)
    assert found == dict.fromkeys(found, wanted)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_table_has_its_recorded_bits(solver):
    kind = PRINTS["numpy"]()
    if kind not in RECORD["tables"]:
        pytest.skip(f"no tables are recorded for machines of the kind {kind}")
    assert tables(solver) == RECORD["tables"][kind][solver]


def test_the_record_has_these_cases_alone():
    assert set(RECORD["bits"]) == set(CASES)
    assert all(set(made) == set(SOLVERS) for made in RECORD["tables"].values())
    assert all(
        isinstance(RECORD["bits"][name], dict) == bool(CASES[name].depends) for name in CASES
    )


# every coefficient of these rows, of all ops, counts for some of 63 elements; but for the s_o of an
# accept row, of which one ulp is lost in the sums of log_alpha
ROWS = [
    ("ddpm", 4), ("dpmpp-2m-sde", 4), ("heun", 3), ("rtk-uld", 3), ("rtk-uld", 12), ("rtk-mala", 0),
    ("rtk-mala", 20), ("rtk-hmc", 4),
]  # fmt: skip


@pytest.mark.parametrize("solver,row", ROWS)
def test_one_ulp_of_a_coefficient_changes_the_bits(solver, row):
    """The control: in float32. The coefficients of accept rows show in log_alpha."""
    with rounded_tables():
        table = table_of(solver, *PLACE)

    def drawn(coefficients: np.ndarray) -> str:
        changed = dataclasses.replace(table, coefficients=coefficients)
        return digest(*ran(solver, PLACE, table=changed))

    whole = drawn(table.coefficients)
    assert whole == drawn(table.coefficients.copy())
    for column in np.flatnonzero(table.coefficients[row]):
        coefficients = table.coefficients.copy()
        coefficients[row, column] += np.spacing(np.float32(coefficients[row, column]))
        name = COLUMNS[table.op[row]][column]
        assert drawn(coefficients) != whole or name == "s_o", name


def test_one_ulp_of_a_coefficient_is_no_recorded_sample():
    """The control: a row of DDPM's table, on each instruction set."""
    with rounded_tables():
        table = table_of("ddpm", *PLACE)
    coefficients = table.coefficients.copy()
    coefficients[4, np.argmax(coefficients[4])] *= 1 + 2.0**-23
    changed = dataclasses.replace(table, coefficients=coefficients)
    wanted = RECORD["bits"]["sample/ddpm/ou/score"]
    for given, same in ((table, True), (changed, False)):
        found = bits(Case(lambda given=given: (ardiff.sample(MODEL, SHAPE, table=given, seed=11),)))
        assert all((digest == wanted) == same for digest in found.values())
