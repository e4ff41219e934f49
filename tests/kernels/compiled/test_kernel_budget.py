"""The comparison of compiled kernels with their budget, on made-up rows."""

import json

import pytest

from tests.kernels.compiled import kernel_budget, sass

MEASURED = {
    "op": "uld_step", "case": "large", "target": "sm_90", "registers": 80, "shared_bytes": 0,
    "local_bytes": 0, "local_instructions": 0, "load_32": 5, "load_128": 8, "store_128": 3,
}  # fmt: skip
BUDGET = kernel_budget.budget_rows("cuda", [MEASURED])


def breaches(same_compiler: bool = True, **changes: int | str) -> list[str]:
    rows = kernel_budget.budget_rows("cuda", [{**MEASURED, **changes}])
    return list(kernel_budget.breaches(rows, BUDGET, same_compiler))


def test_the_same_and_less_are_within():
    assert breaches() == breaches(registers=60, load_32=0) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"registers": 88}, "registers 88 > budget 80"),
        ({"local_instructions": 2}, "spills 2 > budget 0"),
        ({"shared_bytes": 128}, "shared_bytes 128 > budget 0"),
        ({"local_bytes": 16}, "local_bytes 16 > budget 0"),
        ({"load_128": 7, "load_32": 9}, "32-bit loads 9 > budget 5"),
        ({"store_128": 2, "store_16": 8}, "16-bit stores 8 > budget 0"),
    ],
)
def test_a_breach_names_its_row(change, says):
    assert breaches(**change) == [f"cuda uld_step (large) on sm_90: {says}"]


def test_another_compiler_may_choose_registers_and_widths_but_not_spill():
    assert breaches(same_compiler=False, registers=88, load_32=6) == []
    assert len(breaches(same_compiler=False, registers=88, local_bytes=4)) == 1


def test_new_and_vanished_kernels_name_the_command():
    new, gone = breaches(case="new")
    assert "uld_step (new) on sm_90 has no row" in new and "uld_step (large) on sm_90" in gone
    assert kernel_budget.COMMAND in new and kernel_budget.COMMAND in gone


def test_the_checked_in_rows_spill_nothing():
    """Each op on each backend has rows for both targets; none uses local memory."""
    rows = json.loads(kernel_budget.FILE.read_text())["rows"]
    assert len({kernel_budget.key_of(row) for row in rows}) == len(rows)
    for backend, op in {(row["backend"], row["op"]) for row in rows}:
        mine = [row for row in rows if (row["backend"], row["op"]) == (backend, op)]
        assert {row["target"] for row in mine} == set(kernel_budget.TARGETS)
    assert all(row["spills"] == row["local_bytes"] == 0 for row in rows)


def test_machine_code_is_counted():
    """Widths come from the opcode: neither `.64` of an address nor `128` of a cache hint."""
    code = """
        /*0000*/                   LDG.E R4, [R2.64] ;              /* 0x0 */
                                                                    /* 0x0 */
        /*0010*/              @!P0 LDG.E.LTC128B.64 R4, [R2.64] ;   /* 0x0 */
        /*0020*/              @UP1 LDG.E.128.CONSTANT R4, [R2] ;    /* 0x0 */
        /*0030*/                   STG.E.U16 [R2.64], R4 ;          /* 0x0 */
        /*0040*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;    /* 0x0 */
        /*0050*/                   STL.64 [R1], R4 ;                /* 0x0 */
        /*0060*/                   IMAD.MOV.U32 R1, RZ, RZ, R2 ;    /* 0x0 */
"""
    found = {name: count for name, count in sass.counts(code).items() if count}
    assert found == {
        "instructions": 7, "local_instructions": 1, "barriers": 1, "stores": 1, "load_32": 1,
        "load_64": 1, "load_128": 1, "store_16": 1,
    }  # fmt: skip
