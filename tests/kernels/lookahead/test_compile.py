"""Static proof of the Triton kernels of `lookahead_draft` and `lookahead_verify`, without a GPU:
they compile for sm_80, sm_90 and gfx942 and do not spill."""

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
    return f"{row['op']}, {row['case']} on {row['target']}"


def test_they_compile_for_every_target(compiled):
    for op in ("lookahead_draft", "lookahead_verify"):
        targets = {row["target"] for row in compiled if row["op"] == op}
        assert targets == {"sm_80", "sm_90", "gfx942"}


def test_no_spills_and_little_shared_memory(compiled):
    """Shared memory is for the sums alone. On gfx942 the verification keeps scalars in lanes of
    vector registers, which is no access of memory."""
    for row in compiled:
        assert row.get("local_instructions", 0) == row.get("vgpr_spills", 0) == 0, named(row)
        assert row["target"] == "gfx942" or row["local_bytes"] == 0, named(row)
        assert row["shared_bytes"] <= 128, named(row)
        assert row["op"] != "lookahead_draft" or row["shared_bytes"] == 0, named(row)


def test_registers_leave_room(compiled):
    """Draft: 640 threads per multiprocessor. Verify, with two programs per sample: 384."""
    for row in compiled:
        threads = 640 if row["op"] == "lookahead_draft" else 384
        assert row["target"] == "gfx942" or row["registers"] * threads <= 65536, named(row)


def test_float32_moves_in_128_bits(compiled):
    row = next(
        r
        for r in compiled
        if (r["op"], r["case"], r["target"]) == ("lookahead_draft", "large", "sm_90")
    )
    assert row["load_128"] >= 6 and row["store_128"] == row["stores"]


def test_within_the_budget(compiled):
    """A register, spill, byte or access more than kernel_budget.json allows names its row."""
    kernel_budget.check("triton", compiled, kernel_budget.triton_compiler())
