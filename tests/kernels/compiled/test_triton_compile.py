"""Static proof of the Triton kernels, without a GPU: they compile for sm_80, sm_90 and gfx942, do
not spill, and move float32 in 128-bit loads and stores."""

from pathlib import Path

import pytest

from tests.kernels.compiled import kernel_budget

pytest.importorskip("triton")
SCRIPT = Path(__file__).with_name("triton_static.py")
OPS = {
    *("philox_normal", "brownian_increment", "diffusion_step", "uld_step"),
    *("diffusion_step_backward", "uld_step_backward"),
}


@pytest.fixture(scope="module")
def compiled() -> list[dict]:
    rows = kernel_budget.run_triton(SCRIPT)
    print(kernel_budget.table(kernel_budget.budget_rows("triton", rows)))
    return rows


def named(row: dict) -> str:
    return f"{row['op']} ({row['case']}) on {row['target']}"


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_every_kernel_compiles(compiled, target):
    assert {row["op"] for row in compiled if row["target"] == target} == OPS


def test_no_spills_and_no_local_memory(compiled):
    for row in compiled:
        assert row["local_bytes"] == 0, named(row)
        assert row.get("local_instructions", 0) == 0, named(row)
        assert row.get("vgpr_spills", 0) == row.get("sgpr_spills", 0) == 0, named(row)


def test_nothing_passes_between_lanes(compiled):
    """No shared memory and no barrier, but where d is odd and loads must be scalar."""
    for row in compiled:
        odd = "odd" in row["case"]
        assert (row["shared_bytes"] > 0) == odd, named(row)
        assert row["target"] == "gfx942" or (row["barriers"] > 0) == odd, named(row)


@pytest.mark.parametrize(
    ("op", "loads", "stores"),
    [
        *(("uld_step", 8, 6), ("diffusion_step", 6, 4), ("philox_normal", 0, 2)),
        ("brownian_increment", 0, 2),
        *(("uld_step_backward", 6, 8), ("diffusion_step_backward", 6, 6)),
    ],
)
def test_float32_moves_in_128_bits(compiled, op, loads, stores):
    """Eight elements per lane: two 128-bit accesses for each tensor, and no narrower store."""
    row = next(
        r for r in compiled if (r["op"], r["case"], r["target"]) == (op, "large", "sm_90")
    )  # fmt: skip
    assert (row["load_128"], row["store_128"], row["stores"]) == (loads, stores, stores)


def test_registers_leave_room_for_640_threads(compiled):
    """On a multiprocessor with 65,536 registers: enough loads in flight for the bandwidth."""
    for row in compiled:
        assert row["target"] == "gfx942" or row["registers"] * 640 <= 65536, named(row)


def test_within_the_budget(compiled):
    """A register, spill, byte or access more than kernel_budget.json allows names its row."""
    kernel_budget.check("triton", compiled, kernel_budget.triton_compiler())
