"""Static proof of the Triton kernel of `packed_linear`, without a GPU: it compiles for sm_80, sm_90
and gfx942, does not spill, uses the matrix units and fetches weights ahead."""

from pathlib import Path

import pytest

from tests.kernels.compiled import kernel_budget

pytest.importorskip("triton")
SCRIPT = Path(__file__).with_name("static.py")
SHARED_OF_A_MULTIPROCESSOR = {"sm_80": 164 * 1024, "sm_90": 228 * 1024, "gfx942": 64 * 1024}


@pytest.fixture(scope="module")
def compiled() -> list[dict]:
    rows = kernel_budget.run_triton(SCRIPT)
    print(kernel_budget.table(kernel_budget.budget_rows("triton", rows)))
    return rows


def named(row: dict) -> str:
    return f"{row['case']} on {row['target']}"


def test_every_target_is_compiled(compiled):
    assert {row["target"] for row in compiled} == {"sm_80", "sm_90", "gfx942"}
    assert {row["op"] for row in compiled} == {"packed_linear"}


def test_no_spills_and_no_local_memory(compiled):
    for row in compiled:
        assert row["local_bytes"] == 0, named(row)
        assert row.get("local_instructions", 0) == 0, named(row)
        assert row.get("vgpr_spills", 0) == row.get("sgpr_spills", 0) == 0, named(row)


def test_products_are_those_of_the_matrix_units(compiled):
    """float32 is multiplied as it is, which gfx942 has matrix instructions for. int8 weights take
    three parts of an element of x."""
    for row in compiled:
        exact = row["case"].startswith("float32") and "x" not in row["case"]
        assert (row["matrix"] > 0) == (row["target"] == "gfx942" or not exact), named(row)
    matrix = {(row["case"], row["target"]): row["matrix"] for row in compiled}
    assert matrix["int8", "sm_90"] == 3 * matrix["norm, qkv", "sm_90"] > 0


def test_weights_are_fetched_ahead(compiled):
    """In 128-bit copies that do not wait; in narrower ones where gate and up lie across panels."""
    for row in compiled:
        if row["target"] == "gfx942":
            continue
        if row["case"] == "odd swiglu":
            assert row["copy_128"] == 0 and row["copy_32"] >= 12, named(row)
        else:
            assert row["copy_128"] >= 8, named(row)


def test_two_programs_fit_on_a_multiprocessor(compiled):
    for row in compiled:
        if row["target"] == "gfx942":
            assert row["shared_bytes"] <= SHARED_OF_A_MULTIPROCESSOR["gfx942"], named(row)
            continue
        limit = SHARED_OF_A_MULTIPROCESSOR[row["target"]]
        assert 2 * (row["shared_bytes"] + 1024) <= limit, named(row)
        programs = 1 if row["case"] == "float32, swiglu" else 2
        assert programs * 32 * row["num_warps"] * row["registers"] <= 65536, named(row)


def test_within_the_budget(compiled):
    """A register, spill, byte or access more than kernel_budget.json allows names its row."""
    kernel_budget.check("triton", compiled, kernel_budget.triton_compiler())
