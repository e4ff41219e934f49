"""Names in Triton kernels of numbers that Python defines: columns of a table, purposes of noise."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping

import triton.language as tl

from ..address import PATH_HEAP_BITS, PURPOSE_BITS, Purpose
from ..tables import TABLE_WIDTH


class Names(tl.constexpr):
    """A constant with a part for each name: kernels read `NAMES.part`.

    Its value holds all of them and so enters the key by which Triton caches a compiled kernel: the
    kernel is compiled again when a number changes.
    """

    def __init__(self, numbers: Mapping[str, int]) -> None:
        parts = {name: tl.constexpr(int(number)) for name, number in numbers.items()}
        super().__init__(namedtuple("Numbers", parts)(**parts))
        self.__dict__.update(parts)  # the interpreter looks here, the compiler in the value


def columns(names: tuple[str, ...]) -> Names:
    """The place of each column in a row of a table, from the `COLUMNS` of an op."""
    return Names({name: place for place, name in enumerate(names)})


PURPOSE = Names(Purpose.__members__)
PURPOSE_SHIFT = tl.constexpr(PURPOSE_BITS)
HEAP_SHIFT = tl.constexpr(PATH_HEAP_BITS)
ROW_WIDTH = tl.constexpr(TABLE_WIDTH)
