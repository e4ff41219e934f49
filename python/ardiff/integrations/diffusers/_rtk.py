"""What the RTK schedulers share: their stages, and runs that begin within one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ardiff_kernels import ops

from ...loop.rows import Rows
from ...noise import Purpose, counter_word
from ...tables.paths import Path
from ._calls import CallScheduler
from ._rtk_tables import Stages, read_calls, split_calls


class RTKScheduler(CallScheduler):
    """Stages of `inner` steps; subclasses say of which kind."""

    def _stages(
        self, path: Path, prediction: str, grid: Sequence[float], inner: Sequence[int]
    ) -> Stages:
        raise NotImplementedError

    def _check_options(self) -> None:
        ends = [1.0, 0.5] if self._flow else [len(self._path) - 1, 0]
        self._stages(self._path, self._prediction, ends, [self.config.inner])

    def _made_of(self, calls: int) -> Stages:
        inner = split_calls(calls, self.config.inner)
        return self._made_with(self._grid(len(inner) + 1), inner)

    def _made_on(self, levels: list[float], scale: float) -> Stages:
        grid, inner = read_calls(levels, self.config.inner)
        return self._made_with([level / scale for level in grid], inner)

    def _made_with(self, grid: list[float], inner: list[int]) -> Stages:
        return self._cached(
            (tuple(grid), tuple(inner)),
            lambda: self._stages(self._path, self._prediction, grid, inner),
        )

    def _begin(self, index: int, z: Tensor, key: Tensor, stream: Tensor) -> Rows:
        program, start = self._rows.program, self._calls[index]
        spread = self._made.spread[start]
        # a stage's first row reads neither anchor nor velocity
        anchor, v = (z, z) if spread is None else self._join(z, spread, start, key, stream)
        return Rows(
            program, z, key=key, stream=stream, first=start, memory=anchor,
            v=v if program.schedule.kinetic else None, decisions=self._decisions,
        )  # fmt: skip

    def _join(
        self, z: Tensor, spread: float, row: int, key: Tensor, stream: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Anchor and velocity of a run that begins within a stage."""

        def normals(purpose: Purpose) -> Tensor:
            drawn = ops.philox_normal(
                key, counter_word(row, purpose), stream, math.prod(z.shape[1:])
            )
            return drawn.view(z.shape)

        return z + spread * normals(Purpose.JOIN_ANCHOR), normals(Purpose.JOIN_VELOCITY)
