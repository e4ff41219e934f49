"""KVCache: what it takes is known before it is taken; blocks come and go and none is lost."""

from __future__ import annotations

import random

import pytest
import torch

from ardiff.ar import kv_cache
from ardiff.ar.kv_cache import CachePlan, KVCache

PLAN = CachePlan(layers=3, kv_heads=2, head_dim=32, rows=4, capacity=10)


@pytest.mark.parametrize("dtype", kv_cache.DTYPES, ids=str)
@pytest.mark.parametrize("paged", [{}, {"block_size": 4}, {"block_size": 4, "blocks": 5}])
def test_the_plan_is_what_the_tensors_take(dtype, paged):
    plan = CachePlan(3, 2, 32, 4, 10, dtype=dtype, **paged)
    view = KVCache(plan).view([0])
    tensors = [t for part in view[:4] for t in part if t is not None]
    assert len(tensors) == (12 if plan.quantized else 6)
    assert plan.memory_bytes == sum(t.numel() * t.itemsize for t in tensors)


def test_a_plan_that_does_not_fit_allocates_nothing(monkeypatch):
    monkeypatch.setattr(torch, "empty", lambda *a, **k: pytest.fail("allocated"))
    with pytest.raises(MemoryError) as error:
        KVCache(PLAN, limit=1000)
    assert str(error.value) == (
        "KVCache: 4 blocks of 10 tokens (4 rows of at most 10, 3 layers, 2 heads of 32, float32) "
        "needs 0.06 MiB, but 0.00 MiB are allowed by limit; use fewer rows or blocks, a smaller "
        "capacity or a smaller dtype"
    )
    huge = CachePlan(48, 8, 128, 4096, 65536)
    with pytest.raises(MemoryError, match="needs 98304.00 GiB, but .* [GM]iB are available on cpu"):
        KVCache(huge)
    monkeypatch.setattr(kv_cache, "available_bytes", lambda device: PLAN.memory_bytes - 1)
    with pytest.raises(MemoryError, match="needs 0.06 MiB, but 0.06 MiB are available on cpu"):
        KVCache(PLAN)
    for enough in (None, PLAN.memory_bytes):
        monkeypatch.setattr(kv_cache, "available_bytes", lambda device, n=enough: n)
        PLAN.check_fits("cpu", PLAN.memory_bytes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"dtype": torch.float16},
            "KVCache: dtype must be one of float32, bfloat16, int8, float8_e4m3fn, got "
            "torch.float16",
        ),
        ({"rows": 0}, "KVCache: rows must be positive, got 0"),
        ({"capacity": 0}, "KVCache: capacity must be positive, got 0"),
        ({"block_size": -1}, "KVCache: block_size must be positive, got -1"),
        ({"blocks": 0}, "KVCache: blocks must be positive, got 0"),
    ],
)
def test_plan_errors(options, message):
    with pytest.raises(ValueError) as error:
        CachePlan(
            **{"layers": 1, "kv_heads": 1, "head_dim": 32, "rows": 1, "capacity": 8, **options}
        )
    assert str(error.value) == message


def test_blocks_come_and_go():
    """Random growth and resets against a count of blocks; no block is in two rows."""
    plan = CachePlan(1, 1, 32, 5, 12, block_size=4, blocks=9)
    cache, held, chooser = KVCache(plan), [0] * 5, random.Random(0)
    refused = 0
    for _ in range(2000):
        row = chooser.randrange(5)
        if chooser.random() < 0.4:
            cache.reset([row])
            held[row] = 0
        else:
            tokens = chooser.randint(1, 12)
            needed = max(held[row], plan.blocks_of(tokens))
            if sum(held) - held[row] + needed > 9:
                refused += 1
                with pytest.raises(MemoryError, match="of 9 are free; reset rows or make more"):
                    cache.reserve([row], [tokens])
            else:
                cache.reserve([row], [tokens])
                held[row] = needed
        assert cache.free_blocks == 9 - sum(held)
        table = cache.view(range(5)).block_table.tolist()
        used = [block for r in range(5) for block in table[r][: held[r]]]
        assert len(set(used)) == len(used) == sum(held) and all(0 <= b < 9 for b in used)
    assert refused > 50
    cache.reset()
    assert cache.free_blocks == 9


def test_reserve_is_all_or_nothing():
    cache = KVCache(CachePlan(1, 1, 32, 3, 8, block_size=4, blocks=3))
    with pytest.raises(MemoryError, match="4 more blocks of 4 tokens are needed, but 3 of 3 are"):
        cache.reserve([0, 1], [8, 8])
    with pytest.raises(ValueError, match="row 1 needs room for 9 tokens, but the cache holds 8"):
        cache.reserve([0, 1], [4, 9])
    assert cache.free_blocks == 3


def test_rows_that_are_not_there():
    cache = KVCache(CachePlan(1, 1, 32, 2, 8))
    for rows in ([0, 0], [-1, 1]):
        for use, more in ((cache.reserve, ([8, 8],)), (cache.view, ())):
            with pytest.raises(ValueError, match="rows must be different integers in"):
                use(rows, *more)
    cache.reserve([0, 1], [8, 8])
    cache.reset(row for row in (0, 1))
    assert cache.free_blocks == cache.plan.blocks
