"""Static proof of the Triton kernels of `kv_append` and `kv_attention`, without a GPU: they compile
for sm_80, sm_90 and gfx942, do not spill, and read the cache in wide accesses."""

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
    return f"{row['op']} ({row['case']}) on {row['target']}"


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_every_kernel_compiles(compiled, target):
    found = {row["op"] for row in compiled if row["target"] == target}
    assert found == {"kv_append", "kv_attention", "kv_attention_merge"}


def test_no_spills_and_no_local_memory(compiled):
    """But scalars that gfx942 keeps in lanes of vector registers."""
    for row in compiled:
        assert row["local_bytes"] == 0, named(row)
        assert row.get("local_instructions", 0) == 0, named(row)
        assert row.get("vgpr_spills", 0) == 0, named(row)


def test_enough_programs_fit_on_a_multiprocessor(compiled):
    """Two programs that decode from a bfloat16 or quantised cache: one loads while one computes."""
    decode = [row for row in compiled if row["op"] == "kv_attention"]
    for row in decode:
        limit = SHARED_OF_A_MULTIPROCESSOR[row["target"]]
        assert row["shared_bytes"] <= limit, named(row)
        if row["case"] in ("decode", "int8", "paged, rotary, norm"):
            assert row["target"] == "gfx942" or 2 * row["shared_bytes"] <= limit, named(row)
            threads = 2 * 32 * row["num_warps"]
            assert row["target"] == "gfx942" or threads * row["registers"] <= 65536, named(row)


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_the_cache_moves_in_128_bits(compiled, target):
    """bfloat16 keys and values, and the heads that are appended."""
    rows = {(row["op"], row["case"]): row for row in compiled if row["target"] == target}
    decode, append = rows["kv_attention", "decode"], rows["kv_append", "decode"]
    assert decode["load_128"] >= 8 and append["load_128"] == append["store_128"] == 2
    assert append["stores"] == 2


def test_within_the_budget(compiled):
    """A register, spill, byte or access more than kernel_budget.json allows names its row."""
    kernel_budget.check("triton", compiled, kernel_budget.triton_compiler())
