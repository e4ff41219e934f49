"""KVCache.fork: rows that begin alike share blocks, and a shared block is copied before a write."""

from __future__ import annotations

import random

import pytest
import torch

from ardiff.ar.block_pool import BlockPool
from ardiff.ar.encoder import CausalEncoder, EncoderConfig
from ardiff.ar.kv_cache import DTYPES, CachePlan, KVCache
from ardiff.batch_invariant import batch_invariant
from tests._support.small_models import randomise

SIZE, BLOCKS, ROWS, CAPACITY = 4, 11, 6, 14
LAYOUTS = {"paged": (SIZE, BLOCKS), "contiguous": (None, None)}


class Naive:
    """Rows as lists of blocks, each block a list of its tokens; rows may have the same list."""

    def __init__(self, plan: CachePlan) -> None:
        self.size, self.blocks = plan.block_size, plan.blocks
        self.rows: list[list[list[int]]] = [[] for _ in range(plan.rows)]
        self.lengths = [0] * plan.rows

    def used(self) -> int:
        return len({id(block) for row in self.rows for block in row})

    def holders(self, block: list[int]) -> int:
        return sum(any(each is block for each in row) for row in self.rows)

    def reserve(self, rows: list[int], tokens: list[int]) -> bool:
        """Whether there was room for it."""
        before = [row.copy() for row in self.rows]
        for row, count in zip(rows, tokens, strict=True):
            own = self.rows[row]
            while len(own) * self.size < count:
                own.append([])
            for position in range(self.lengths[row], count):
                at = position // self.size
                if self.holders(own[at]) > 1:
                    own[at] = own[at].copy()
        if self.used() > self.blocks:
            self.rows = before
            return False
        return True

    def write(self, row: int, tokens: list[int]) -> None:
        for token in tokens:
            at, within = divmod(self.lengths[row], self.size)
            self.rows[row][at][within:] = [token]
            self.lengths[row] += 1

    def fork(self, row: int, into: list[int], tokens: int) -> None:
        for other in into:
            self.rows[other] = self.rows[row][: -(-tokens // self.size)]
            self.lengths[other] = tokens

    def reset(self, rows: list[int]) -> None:
        for row in rows:
            self.rows[row], self.lengths[row] = [], 0

    def tokens(self, row: int) -> list[int]:
        return [token for block in self.rows[row] for token in block][: self.lengths[row]]


def tensors(cache: KVCache) -> list[torch.Tensor]:
    """All that a token has: keys, values and scales of each layer, float8 by its bytes."""
    parts = [part for parts in cache.view([0])[:4] for part in parts if part is not None]
    return [part.view(torch.uint8) if part.itemsize == 1 else part for part in parts]


def write(cache: KVCache, row: int, tokens: list[int]) -> None:
    """Each token as a number below 100 everywhere, another one in each tensor."""
    table = cache.view([row]).block_table[0].tolist()
    for token in tokens:
        at, within = divmod(cache.lengths[row], cache.plan.block_size)
        for i, part in enumerate(tensors(cache)):
            part[table[at], :, within] = token + i
        cache.advance([row], [1])


def check(cache: KVCache, naive: Naive) -> None:
    assert cache.lengths == naive.lengths
    assert cache.free_blocks == naive.blocks - naive.used()
    pool = cache._pool
    assert pool.holders == [sum(b in held for held in pool.held) for b in range(naive.blocks)]
    assert sorted(pool.free) == [b for b in range(naive.blocks) if not pool.holders[b]]
    for row, table in enumerate(cache.view(range(len(naive.rows))).block_table):
        assert [pool.holders[b] for b in pool.held[row]] == list(
            map(naive.holders, naive.rows[row])
        )
        blocks = table[: len(naive.rows[row])]
        assert blocks.tolist() == pool.held[row]
        for i, part in enumerate(tensors(cache)):
            found = part[blocks.long()].transpose(1, 2).flatten(0, 1)[: cache.lengths[row]]
            expected = torch.tensor(naive.tokens(row)).to(found)[:, None] + i
            assert bool((found.flatten(1) == expected).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_random_forks_against_lists_of_lists(layout, dtype):
    """Contents, reference counts and free blocks after every event; nothing changes on an error."""
    size, blocks = LAYOUTS[layout]
    plan = CachePlan(2, 2, 32, ROWS, CAPACITY, size, blocks, dtype)
    cache, naive, chooser = KVCache(plan), Naive(plan), random.Random(3)
    refused = forked = shared = 0
    for _ in range(600):
        event = chooser.choices(["write", "reserve", "fork", "reset"], [50, 10, 25, 18])[0]
        rows = chooser.sample(range(ROWS), chooser.choice([1, 1, 2, 3]))
        empty = [row for row in range(ROWS) if not naive.rows[row]]
        if event == "reset":
            cache.reset(rows)
            naive.reset(rows)
        elif event == "fork" and empty and rows[0] not in empty:
            into = chooser.sample(empty, chooser.randint(1, len(empty)))
            tokens = chooser.choice([naive.lengths[rows[0]], chooser.randint(0, plan.capacity)])
            tokens = min(tokens, naive.lengths[rows[0]])
            cache.fork(rows[0], into, tokens)
            naive.fork(rows[0], into, tokens)
            forked += 1
        elif event in ("write", "reserve"):
            new = [chooser.randint(0, min(5, CAPACITY - naive.lengths[row])) for row in rows]
            after = [naive.lengths[row] + n for row, n in zip(rows, new, strict=True)]
            if not naive.reserve(rows, after):
                refused += 1
                with pytest.raises(MemoryError, match=f"of {plan.blocks} are free; reset rows"):
                    cache.reserve(rows, after)
            else:
                cache.reserve(rows, after)
                for row, n in zip(rows, new if event == "write" else [0] * len(rows), strict=True):
                    tokens = [chooser.randrange(100) for _ in range(n)]
                    write(cache, row, tokens)
                    naive.write(row, tokens)
        check(cache, naive)
        shared += cache.free_blocks + sum(map(len, naive.rows)) > plan.blocks
    assert forked > 40 and shared > 100
    assert refused > 20 or layout == "contiguous"
    cache.reset()
    assert cache.free_blocks == plan.blocks and not any(cache._pool.holders)


def test_without_copies_a_row_overwrites_the_others(monkeypatch):
    """The control of the test above: its sixth token is what the last row wrote."""

    def sixth_tokens() -> list[int]:
        cache = KVCache(CachePlan(1, 1, 32, 3, 12, SIZE))
        cache.reserve([0], [5])
        write(cache, 0, [1, 2, 3, 4, 5])
        cache.fork(0, [1, 2])
        for row in range(3):
            cache.reserve([row], [6])
            write(cache, row, [6 + row])
        table = cache.view([0, 1, 2]).block_table[:, 1].tolist()
        return [int(tensors(cache)[0][block, 0, 1, 0]) for block in table]

    assert sixth_tokens() == [6, 7, 8]
    monkeypatch.setattr(BlockPool, "shared", lambda self, written: [])
    assert sixth_tokens() == [8, 8, 8]


def test_the_memory_of_one_beginning_and_many_tails():
    """22 tokens are 5 full blocks and a part; 16 rows that go on share the 5."""
    cache = KVCache(CachePlan(1, 1, 32, 16, 40, SIZE, 200))
    cache.reserve([0], [22])
    cache.advance([0], [22])
    cache.fork(0, range(1, 16))
    assert cache.free_blocks == 200 - 6 and cache.lengths == [22] * 16
    cache.reserve(range(16), [40] * 16)
    assert cache.free_blocks == 200 - (5 + 16 * 5)
    cache.reset([0])  # whose full blocks the others still hold
    assert cache.free_blocks == 200 - (5 + 15 * 5)
    cache.reset(range(1, 16))
    assert cache.free_blocks == 200


def test_copies_are_counted_before_anything_changes():
    cache = KVCache(CachePlan(1, 1, 32, 3, 12, SIZE, 4))
    cache.reserve([0], [6])
    cache.advance([0], [6])
    cache.fork(0, [1, 2])
    with pytest.raises(MemoryError, match="4 more blocks of 4 tokens are needed, but 2 of 4 are"):
        cache.reserve([0, 1, 2], [9, 9, 8])
    assert cache.free_blocks == 2 and cache._pool.holders[:2] == [3, 3]
    cache.reserve([0, 1, 2], [7, 8, 8])
    assert cache.free_blocks == 0
    with pytest.raises(ValueError, match="row 1 needs room for 13 tokens"):
        cache.reserve([0, 1], [8, 13])


def test_what_a_fork_refuses():
    cache = KVCache(CachePlan(1, 1, 32, 4, 12, SIZE))
    cache.reserve([0, 2], [6, 1])
    cache.advance([0], [6])
    for row, into, tokens, message in (
        (0, [1, 1], None, "rows must be different integers in [0, 4), got [0, 1, 1]"),
        (0, [0], None, "rows must be different integers in [0, 4), got [0, 0]"),
        (4, [1], None, "rows must be different integers in [0, 4), got [4, 1]"),
        (0, [1], 7, "tokens must lie in [0, 6], what row 0 holds, got 7"),
        (0, [1], -1, "tokens must lie in [0, 6], what row 0 holds, got -1"),
        (0, [1, 2], 6, "row 2 holds 1 blocks, but a fork goes into empty rows; reset it first"),
    ):
        with pytest.raises(ValueError) as error:
            cache.fork(row, into, tokens)
        assert str(error.value) == f"KVCache: {message}"
    assert cache.lengths == [6, 0, 0, 0] and cache.free_blocks == 9


@pytest.mark.parametrize("copies", [True, False], ids=["copy-on-write", "control"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forked_rows_give_the_bits_of_separate_ones(dtype, layout, copies, monkeypatch):
    """A prompt that ends inside a block, then tokens of their own; the row that was forked is
    reset in the middle. Without copies the bits are others."""
    size, _ = LAYOUTS[layout]
    config = EncoderConfig(width=64, depth=2, heads=2, kv_heads=1, ffn=96, positions=32)
    model, generator = randomise(CausalEncoder(config)), torch.Generator().manual_seed(1)
    prompt, new = (torch.randn(n, 64, generator=generator) for n in (9, 4 * 3))
    new = new.view(3, 4, 64)
    cache, separate = (model.new_cache(4, 16, block_size=size, dtype=dtype) for _ in range(2))
    if not copies:
        monkeypatch.setattr(BlockPool, "shared", lambda self, written: [])
    with batch_invariant():
        model.prefill(prompt[None], cache, [3])
        model.prefill(prompt.expand(3, -1, -1), separate, [0, 1, 2])
        cache.fork(3, [0, 1, 2])
        pairs = []
        for t in range(4):
            if t == 2:
                cache.reset([3])
            pairs.append([model.append(new[:, t : t + 1], c, [0, 1, 2]) for c in (cache, separate)])
    assert all(torch.equal(found, expected) for found, expected in pairs) == copies
    if copies and size:
        assert cache.free_blocks == 16 - (2 + 3 * 2) and separate.free_blocks == 16 - 3 * 4
