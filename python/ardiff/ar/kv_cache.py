"""The cache of keys and values: its size is known before it is allocated, and sequences that begin
and end at different times share its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

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
    not erased, since no row reads past its own length.

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
        >>> KVCache(plan).lengths
        [0, 0, 0]
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
        self._blocks: list[list[int]] = [[] for _ in range(plan.rows)]
        self._free = list(range(plan.blocks))[::-1]
        self._table = torch.zeros(plan.rows, plan.blocks_of(plan.capacity), dtype=torch.int32)

    @property
    def free_blocks(self) -> int:
        return len(self._free)

    def check_rows(self, rows: Sequence[int]) -> None:
        """Raises ValueError unless `rows` are different rows of this cache."""
        if len(set(rows)) != len(rows) or any(not 0 <= row < self.plan.rows for row in rows):
            raise ValueError(
                f"KVCache: rows must be different integers in [0, {self.plan.rows}), got "
                f"{list(rows)}"
            )

    def reserve(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Gives each row the blocks for `tokens` tokens in all: every row or, on an error, none.

        Raises:
            ValueError: more tokens than `capacity`.
            MemoryError: more blocks than are free.
        """
        self.check_rows(rows)
        plan, wanted = self.plan, []
        for row, count in zip(rows, tokens, strict=True):
            if count > plan.capacity:
                raise ValueError(
                    f"KVCache: row {row} needs room for {count} tokens, but the cache holds "
                    f"{plan.capacity} tokens per sequence; make a larger cache"
                )
            wanted.append(max(0, plan.blocks_of(count) - len(self._blocks[row])))
        if sum(wanted) > len(self._free):
            raise MemoryError(
                f"KVCache: {sum(wanted)} more blocks of {plan.block_size} tokens are needed, but "
                f"{len(self._free)} of {plan.blocks} are free; reset rows or make more blocks"
            )
        for row, count in zip(rows, wanted, strict=True):
            held = self._blocks[row]
            for _ in range(count):
                self._table[row, len(held)] = self._free[-1]
                held.append(self._free.pop())

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
        """Empties rows (all when None) and returns their blocks to the pool."""
        rows = range(self.plan.rows) if rows is None else list(rows)
        self.check_rows(rows)
        for row in rows:
            self._free.extend(reversed(self._blocks[row]))
            self._blocks[row] = []
            self.lengths[row] = 0
