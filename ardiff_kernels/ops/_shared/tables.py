"""The tables of coefficients, float32 `[T, 20]`, of the step ops and of `mala_accept`.

An op names the columns that it reads in its `COLUMNS`, in their order. That is the one place of the
order: references and Triton kernels take a column by its name, and `csrc/math/columns.h` is written
from the same tuples (`columns.py`).
"""

from __future__ import annotations

TABLE_WIDTH = 20
