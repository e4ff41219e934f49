"""A caller's functions as the loop calls them, on `[B, d]`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .checks import check_output


class CountedModel:
    """Counts the calls of a model, hoisted or plain, and gives it x in the caller's shape.

    A first size of -1 stands for any number of states. With `learned_range` its outputs may have
    twice as many channels: (B, 2 C, ..) for (B, C, ..).
    """

    def __init__(
        self, model: Callable, shape: tuple[int, ...], learned_range: bool = False
    ) -> None:
        self.model, self.shape, self.calls = model, shape, 0
        self._learned_range = learned_range
        if hasattr(model, "hoist"):
            self.hoist = self._hoist
            self.hoists_ragged = getattr(model, "hoists_ragged", False)
        if hasattr(model, "hoist_guided"):
            self.hoist_guided = self._hoist_guided
        if hasattr(model, "hoist_rows"):
            self.hoist_rows = self._hoist_rows

    def _counted(self, function: Callable[..., Tensor], x: Tensor) -> Tensor:
        self.calls += 1
        shaped = x.view(self.shape)
        return self._flat(function(shaped), shaped)

    def _flat(self, out: Tensor, x: Tensor) -> Tensor:
        check_output(out, x, self._learned_range)
        return out.flatten(1)

    def __call__(self, x: Tensor, level: Tensor, condition: Any) -> Tensor:
        if not callable(self.model):
            raise TypeError(
                "samples at rows of their own need a model that can be called with a level for "
                f"each: {type(self.model).__name__} has only hoist"
            )
        return self._counted(lambda x: self.model(x, level, condition), x)

    def _hoist(self, levels: Tensor, condition: Any) -> Callable[[int, Tensor], Tensor]:
        function = self.model.hoist(levels, condition)
        return lambda row, x: self._counted(lambda x: function(row, x), x)

    def _hoist_guided(
        self, levels: Tensor, conditions: Sequence
    ) -> Callable[[int, Tensor], list[Tensor]]:
        function = self.model.hoist_guided(levels, conditions)

        def call(row: int, x: Tensor) -> list[Tensor]:
            self.calls += len(conditions)
            shaped = x.view(self.shape)
            return [self._flat(out, shaped) for out in function(row, shaped)]

        return call

    def _hoist_rows(
        self, levels: Tensor, conditions: Sequence
    ) -> Callable[[Tensor, Tensor, Tensor], list[Tensor]]:
        function = self.model.hoist_rows(levels, conditions)

        def call(rows: Tensor, samples: Tensor, x: Tensor) -> list[Tensor]:
            self.calls += len(conditions)
            shaped = x.view(self.shape)
            return [self._flat(out, shaped) for out in function(rows, samples, shaped)]

        return call


def shaped_energy(energy_fn: Callable, shape: tuple[int, ...]) -> Callable[..., Tensor]:
    """``energy_fn(x, level, condition)`` that gets x in `shape`."""
    return lambda x, level, condition: energy_fn(x.view(shape), level, condition)
