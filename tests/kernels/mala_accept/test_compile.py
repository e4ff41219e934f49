"""Static proof of `mala_accept`'s Triton kernel, without a GPU: it compiles for sm_80, sm_90 and
gfx942, does not spill, and moves float32 in 128-bit loads and stores. The CUDA source is covered by
`test_cuda_compile.py`."""

from pathlib import Path

import pytest

from tests.kernels.compiled import kernel_budget

pytest.importorskip("triton")
SCRIPT = Path(__file__).with_name("static.py")


@pytest.fixture(scope="module")
def compiled() -> list[dict]:
    rows = kernel_budget.run_triton(SCRIPT)
    print(kernel_budget.table(kernel_budget.budget_rows("triton", rows)))
    return rows


def named(row: dict) -> str:
    return f"{row['case']} on {row['target']}"


def test_it_compiles_for_every_target(compiled):
    assert {row["target"] for row in compiled} == {"sm_80", "sm_90", "gfx942"}


def test_no_spills_and_little_shared_memory(compiled):
    """Shared memory is for the sums alone, never for a change of layout."""
    for row in compiled:
        assert row["local_bytes"] == 0, named(row)
        assert row.get("local_instructions", 0) == 0, named(row)
        assert row.get("vgpr_spills", 0) == row.get("sgpr_spills", 0) == 0, named(row)
        assert row["shared_bytes"] <= 128, named(row)


def test_registers_leave_room_for_640_threads(compiled):
    for row in compiled:
        assert row["target"] == "gfx942" or row["registers"] * 640 <= 65536, named(row)


@pytest.mark.parametrize(("case", "narrower"), [("large", 2), ("middle, energies, ball", 3)])
def test_float32_moves_in_128_bits(compiled, case, narrower):
    """All [B, d] tensors; stores beside those are accepted, log_alpha and energy."""
    row = next(r for r in compiled if (r["case"], r["target"]) == (case, "sm_90"))
    assert row["load_128"] >= 7 and row["store_128"] == row["stores"] - narrower


def test_within_the_budget(compiled):
    """A register, spill, byte or access more than kernel_budget.json allows names its row."""
    kernel_budget.check("triton", compiled, kernel_budget.triton_compiler())
