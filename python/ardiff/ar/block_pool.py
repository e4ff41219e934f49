"""Which blocks of a cache each row holds, and how many rows hold each block."""

from __future__ import annotations

from collections.abc import Iterable


class BlockPool:
    """Blocks counted by reference: one is free when no row holds it.

    Args:
        blocks, rows: how many.

    Attributes:
        held: the blocks of each row, in the order of its tokens.
        holders: how many rows hold each block.
        free: blocks that none holds; the last one is given next.
    """

    def __init__(self, blocks: int, rows: int) -> None:
        self.held: list[list[int]] = [[] for _ in range(rows)]
        self.holders = [0] * blocks
        self.free = list(range(blocks))[::-1]

    def shared(self, written: Iterable[tuple[int, range]]) -> list[tuple[int, int]]:
        """The blocks that rows must get copies of before they are written.

        Args:
            written: rows, and the indices of the blocks of each that are to be written.

        Returns:
            (row, index) of each such block; the last row that holds one keeps it.
        """
        holders, found = self.holders.copy(), []
        for row, indices in written:
            for index in indices:
                block = self.held[row][index]
                if holders[block] > 1:
                    holders[block] -= 1
                    found.append((row, index))
        return found

    def next(self, count: int) -> list[int]:
        """The `count` blocks that :meth:`give` gives next, no more than are free."""
        return self.free[: -count - 1 : -1]

    def give(self, row: int, index: int) -> int:
        """Makes a free block number `index` of the row, in the place of the one there, if any."""
        held, block = self.held[row], self.free.pop()
        for old in held[index : index + 1]:
            self._drop(old)
        held[index : index + 1] = [block]
        self.holders[block] = 1
        return block

    def share(self, row: int, count: int, into: Iterable[int]) -> list[int]:
        """Lets rows that hold nothing hold the first `count` blocks of `row`; returns these."""
        blocks = self.held[row][:count]
        for other in into:
            self.held[other] = blocks.copy()
            for block in blocks:
                self.holders[block] += 1
        return blocks

    def release(self, row: int) -> None:
        """Takes all blocks from the row."""
        for block in reversed(self.held[row]):
            self._drop(block)
        self.held[row] = []

    def _drop(self, block: int) -> None:
        self.holders[block] -= 1
        if not self.holders[block]:
            self.free.append(block)
