"""Static proof of the Triton kernels of `head_step`, without a GPU: they compile for sm_80, sm_90
and gfx942, do not spill, use the matrix units and fetch weights ahead."""

from pathlib import Path

import pytest

from tests.kernels.compiled import kernel_budget

pytest.importorskip("triton")
SCRIPT = Path(__file__).with_name("static.py")
SHARED_OF_A_PROGRAM = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "gfx942": 64 * 1024}
EXACT = ("float32", "input, two conditions")  # multiplied by float32's own instructions


@pytest.fixture(scope="module")
def compiled() -> list[dict]:
    rows = kernel_budget.run_triton(SCRIPT)
    print(kernel_budget.table(kernel_budget.budget_rows("triton", rows)))
    return rows


def named(row: dict) -> str:
    return f"{row['op']} ({row['case']}) on {row['target']}"


def products(compiled: list[dict]) -> list[dict]:
    return [row for row in compiled if row["op"] != "head_step_norm"]


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_every_kernel_compiles(compiled, target):
    found = {row["op"] for row in compiled if row["target"] == target}
    assert found == {"head_step_few", "head_step_many", "head_step_norm"}


def test_no_spills_and_no_local_memory(compiled):
    for row in compiled:
        assert row["local_bytes"] == 0, named(row)
        assert row.get("local_instructions", 0) == 0, named(row)
        assert row.get("vgpr_spills", 0) == row.get("sgpr_spills", 0) == 0, named(row)


def test_a_program_fits(compiled):
    for row in compiled:
        assert row["shared_bytes"] <= SHARED_OF_A_PROGRAM[row["target"]], named(row)


def test_products_are_those_of_the_matrix_units(compiled):
    """Of a warpgroup on sm_90 where there are many rows; float32 is multiplied as it is, which
    gfx942 has matrix instructions for."""
    for row in products(compiled):
        if row["target"] == "gfx942":
            assert row["matrix"] > 0, named(row)
            continue
        exact = row["case"].startswith(EXACT)
        wide = row["op"] == "head_step_many" and "32 rows" not in row["case"]
        wide = wide and row["target"] == "sm_90"
        assert (row["warpgroup_matrix"] > 0) == (wide and not exact), named(row)
        assert (row["matrix"] > 0) == (not wide and not exact), named(row)


def test_int8_takes_three_parts_of_an_activation(compiled):
    rows = {(r["op"], r["case"], r["target"]): r for r in compiled}
    int8, bfloat16 = (rows["head_step_few", name, "sm_90"]["matrix"] for name in ("int8", "mar-b"))
    assert int8 == 3 * bfloat16 > 0


def test_weights_are_fetched_ahead(compiled):
    """By copies that do not wait, but where rows of an odd width are not aligned."""
    for row in products(compiled):
        if row["target"] != "gfx942":
            copies = sum(count for name, count in row.items() if name.startswith("copy_"))
            assert (copies >= 8) == ("odd" not in row["case"]), named(row)


def test_two_programs_of_few_rows_fit_on_a_multiprocessor(compiled):
    for row in compiled:
        if row["op"] == "head_step_few" and row["target"] != "gfx942":
            assert 2 * row["shared_bytes"] <= SHARED_OF_A_PROGRAM[row["target"]], named(row)
            assert 2 * 32 * row["num_warps"] * row["registers"] <= 65536, named(row)


def test_within_the_budget(compiled):
    """A register, spill, byte or access more than kernel_budget.json allows names its row."""
    kernel_budget.check("triton", compiled, kernel_budget.triton_compiler())
