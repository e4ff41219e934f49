"""The cache of keys and values: its size is known before it is allocated, and sequences that begin
and end at different times share its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .block_pool import BlockPool
from .free_memory import available_bytes

DTYPES = (torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn)


@dataclass(frozen=True)
class CachePlan:
    """What a cache will take, before anything is allocated.

    A contiguous cache is a paged one where each row owns exactly one block of `capacity` tokens.

    Attributes:
        layers, kv_heads, head_dim: of the encoder.
        rows: sequences that the cache holds at a time.
        capacity: tokens that one row can hold.
        block_size: tokens of a block; None for `capacity`.
        blocks: in the pool; None for as many as all rows need when full.
        dtype: float32, bfloat16, or int8 or float8_e4m3fn with a float32 scale per token and head.

    Raises:
        ValueError: a size below 1, a dtype that is none of these.
    """

    layers: int
    kv_heads: int
    head_dim: int
    rows: int
    capacity: int
    block_size: int | None = None
    blocks: int | None = None
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            known = ", ".join(str(dtype)[6:] for dtype in DTYPES)
            raise ValueError(f"KVCache: dtype must be one of {known}, got {self.dtype}")
        if self.block_size is None:
            object.__setattr__(self, "block_size", self.capacity)
        for name in ("layers", "kv_heads", "head_dim", "rows", "capacity", "block_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"KVCache: {name} must be positive, got {getattr(self, name)}")
        if self.blocks is None:
            object.__setattr__(self, "blocks", self.rows * self.blocks_of(self.capacity))
        if self.blocks < 1:
            raise ValueError(f"KVCache: blocks must be positive, got {self.blocks}")

    def blocks_of(self, tokens: int) -> int:
        """Blocks that `tokens` tokens of one row take."""
        return -(-tokens // self.block_size)

    @property
    def quantized(self) -> bool:
        return self.dtype not in (torch.float32, torch.bfloat16)

    @property
    def memory_bytes(self) -> int:
        """Bytes of keys, values and scales of all layers."""
        token = self.head_dim * self.dtype.itemsize + (4 if self.quantized else 0)
        return 2 * self.layers * self.blocks * self.kv_heads * self.block_size * token

    def check_fits(self, device: torch.device | str, limit: int | None = None) -> None:
        """Raises MemoryError where the plan needs more than `limit` or is free on `device`."""
        found = [(limit, "allowed by limit"), (available_bytes(device), f"available on {device}")]
        for most, where in found:
            if most is not None and self.memory_bytes > most:
                raise MemoryError(
                    f"KVCache: {self} needs {_size(self.memory_bytes)}, but {_size(most)} are "
                    f"{where}; use fewer rows or blocks, a smaller capacity or a smaller dtype"
                )

    def __str__(self) -> str:
        kind = str(self.dtype)[6:]
        return (
            f"{self.blocks} blocks of {self.block_size} tokens ({self.rows} rows of at most "
            f"{self.capacity}, {self.layers} layers, {self.kv_heads} heads of {self.head_dim}, "
            f"{kind})"
        )


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.2f} MiB"


class CacheView(NamedTuple):
    """What the ops need of some rows, tensors alone.

    Attributes:
        keys, values: a list of `[N, Hkv, S, D]`, one per layer.
        k_scale, v_scale: a list of float32 `[N, Hkv, S]`, or of None.
        length: int32 `[B]`, tokens held.
        block_table: int32 `[B, M]`.
    """

    keys: list[Tensor]
    values: list[Tensor]
    k_scale: list[Tensor | None]
    v_scale: list[Tensor | None]
    length: Tensor
    block_table: Tensor


class KVCache:
    """Keys and values of all layers, for rows of unequal length.

    A row takes blocks from the pool as it grows and gives them back at `reset`; what they held is
    not erased, since no row reads past its own length. Rows that begin alike share blocks
    (:meth:`fork`); a block goes back to the pool when no row holds it any more.

    Args:
        plan: sizes; see :meth:`ardiff.ar.encoder.CausalEncoder.plan_cache`.
        device: of the tensors.
        limit: bytes that the cache may take; None for what is available.

    Attributes:
        plan: as given; `plan.memory_bytes` is what the cache takes.
        lengths: tokens that each row holds.

    Raises:
        MemoryError: before anything is allocated, if the plan does not fit.

    Example:
        >>> from ardiff.ar.kv_cache import CachePlan, KVCache
        >>> plan = CachePlan(layers=2, kv_heads=1, head_dim=16, rows=3, capacity=32, block_size=8)
        >>> plan.blocks, plan.memory_bytes
        (12, 24576)
        >>> cache = KVCache(plan)
        >>> cache.lengths
        [0, 0, 0]

        Two rows that go on from the 20 tokens of a third: their full blocks are shared.

        >>> cache.reserve([0], [20])
        >>> cache.advance([0], [20])  # counts what the ops have written
        >>> cache.fork(0, into=[1, 2])
        >>> cache.lengths, cache.free_blocks
        ([20, 20, 20], 9)
        >>> cache.reserve([0, 1, 2], [21, 21, 21])  # to write a token each
        >>> cache.free_blocks
        7
    """

    def __init__(
        self, plan: CachePlan, device: torch.device | str = "cpu", limit: int | None = None
    ) -> None:
        plan.check_fits(device, limit)
        self.plan, self.device = plan, torch.device(device)
        shape = (plan.blocks, plan.kv_heads, plan.block_size)

        def layers(*size: int, dtype: torch.dtype) -> list[Tensor]:
            return [torch.empty(size, dtype=dtype, device=device) for _ in range(plan.layers)]

        self._keys = layers(*shape, plan.head_dim, dtype=plan.dtype)
        self._values = layers(*shape, plan.head_dim, dtype=plan.dtype)
        self._scales: tuple[list, list] = ([None] * plan.layers, [None] * plan.layers)
        if plan.quantized:
            self._scales = (
                layers(*shape, dtype=torch.float32),
                layers(*shape, dtype=torch.float32),
            )
        self.lengths = [0] * plan.rows
        self._pool = BlockPool(plan.blocks, plan.rows)
        self._table = torch.zeros(plan.rows, plan.blocks_of(plan.capacity), dtype=torch.int32)

    @property
    def free_blocks(self) -> int:
        return len(self._pool.free)

    def check_rows(self, rows: Sequence[int]) -> None:
        """Raises ValueError unless `rows` are different rows of this cache."""
        if len(set(rows)) != len(rows) or any(not 0 <= row < self.plan.rows for row in rows):
            raise ValueError(
                f"KVCache: rows must be different integers in [0, {self.plan.rows}), got "
                f"{list(rows)}"
            )

    def reserve(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Gives each row the blocks for `tokens` tokens in all: every row or, on an error, none.

        Blocks that the row is to write, from its length on, are its own afterwards: it gets a copy
        of one that it shares, unless the other rows have theirs by then.

        Raises:
            ValueError: more tokens than `capacity`.
            MemoryError: more blocks than are free.
        """
        self.check_rows(rows)
        plan, pool, wanted = self.plan, self._pool, []
        for row, count in zip(rows, tokens, strict=True):
            if count > plan.capacity:
                raise ValueError(
                    f"KVCache: row {row} needs room for {count} tokens, but the cache holds "
                    f"{plan.capacity} tokens per sequence; make a larger cache"
                )
            first, last = len(pool.held[row]), plan.blocks_of(count)
            wanted += [(row, index) for index in range(first, last)]
        shared = pool.shared((r, self._written(r, n)) for r, n in zip(rows, tokens, strict=True))
        needed = len(shared) + len(wanted)
        if needed > len(pool.free):
            raise MemoryError(
                f"KVCache: {needed} more blocks of {plan.block_size} tokens are needed, but "
                f"{len(pool.free)} of {plan.blocks} are free; reset rows or make more blocks"
            )
        self._copy(shared)
        for row, index in shared + wanted:
            self._table[row, index] = pool.give(row, index)

    def _written(self, row: int, tokens: int) -> range:
        """Indices of the blocks that the row holds and writes on its way to `tokens` tokens."""
        if tokens <= self.lengths[row]:
            return range(0)
        held = min(len(self._pool.held[row]), self.plan.blocks_of(tokens))
        return range(self.lengths[row] // self.plan.block_size, held)

    def _copy(self, shared: list[tuple[int, int]]) -> None:
        """Copies the tokens of blocks (row, index) into the blocks that will take their places."""
        size = self.plan.block_size
        filled = max((self.lengths[row] - index * size for row, index in shared), default=0)
        if filled <= 0:
            return
        held = self._pool.held
        old = torch.tensor([held[row][index] for row, index in shared], device=self.device)
        new = torch.tensor(self._pool.next(len(shared)), device=self.device)
        for layer in (*self._keys, *self._values, *self._scales[0], *self._scales[1]):
            if layer is not None:
                # float8 has no indexed assignment.
                part = layer.view(torch.uint8) if layer.itemsize == 1 else layer
                part[new, :, :filled] = part[old, :, :filled]

    def fork(self, row: int, into: Sequence[int], tokens: int | None = None) -> None:
        """Lets empty rows begin with the tokens of `row`, in the blocks that hold them.

        It takes no block. Full blocks stay shared; the last one, where it is partly filled, is
        copied when one of its rows is to be written (copy on write, see :meth:`reserve`): N rows
        take the memory of what they have in common and N tails. In a contiguous cache a row has one
        block, so that each row that goes on has a copy of its own: forks save the time to take the
        tokens in, and no memory.

        Args:
            row: whose tokens.
            into: different rows that hold nothing.
            tokens: how many of the first ones; None for all.

        Raises:
            ValueError: rows that are not there, or not different; a row of `into` that holds
                blocks; more tokens than `row` has.
        """
        into = list(into)
        self.check_rows([row, *into])
        tokens = self.lengths[row] if tokens is None else tokens
        if not 0 <= tokens <= self.lengths[row]:
            raise ValueError(
                f"KVCache: tokens must lie in [0, {self.lengths[row]}], what row {row} holds, got "
                f"{tokens}"
            )
        for other in into:
            if self._pool.held[other]:
                raise ValueError(
                    f"KVCache: row {other} holds {len(self._pool.held[other])} blocks, but a fork "
                    "goes into empty rows; reset it first"
                )
        blocks = self._pool.share(row, self.plan.blocks_of(tokens), into)
        for other in into:
            self._table[other, : len(blocks)] = self._table[row, : len(blocks)]
            self.lengths[other] = tokens

    def view(self, rows: Sequence[int]) -> CacheView:
        """The tensors of `rows`, in this order."""
        self.check_rows(rows)
        length = torch.tensor([self.lengths[row] for row in rows], dtype=torch.int32)
        table = self._table[list(rows)]
        return CacheView(
            self._keys, self._values, *self._scales, length.to(self.device), table.to(self.device)
        )

    def advance(self, rows: Sequence[int], counts: Sequence[int]) -> None:
        """Counts tokens that the ops have written."""
        for row, count in zip(rows, counts, strict=True):
            self.lengths[row] += count

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Empties rows (all when None); blocks that no other row holds go back to the pool."""
        rows = range(self.plan.rows) if rows is None else list(rows)
        self.check_rows(rows)
        for row in rows:
            self._pool.release(row)
            self.lengths[row] = 0
