"""Hoisting: the modulations of a token are computed before its loop, for all levels and conditions.

A set is what one level needs, the modulations of all samples. Sets are made in runs of neighbours,
as many at a time as a budget of memory holds (:class:`Sets`): by a head's own modules where it runs
plainly (:class:`OwnModulations`), from packed weights in a few large matrix products where it is
fused (:class:`Modulations`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ardiff_kernels import ops
from ardiff_kernels.ops.packed_linear.limits import pytorch_is_faster as is_faster
from ardiff_kernels.ops.packed_linear.packing import PANEL

from ..batch_invariant import batch_invariant, linear
from ..loop.capture import capturing, rehearsed

if TYPE_CHECKING:
    from .base import Head
    from .packing import PackedHead

BUDGET = 64 << 20  # bytes of modulations of a fused head held at a time
# Of a plain head. The rows of a product may round otherwise in a product of another size, so this
# is a number of its own: with the other one, samples of large batches would have other bits.
_OWN_BUDGET = 128 << 20
_SEPARATE = 32  # rows from which a set is a product of its own
# Outputs of a batch-invariant product on a GPU, whose weights stay in the cache; the least of one
# of packed weights.
_OUTER = 1024
_RESULT = 16 << 20  # bytes of the result of one packed product

_known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def numbers(values: tuple[int, ...], device: torch.device) -> Tensor:
    """int32 on `device`, kept: a copy from the host waits, and a CUDA graph cannot hold it.

    Those that count from 0 up need no copy, and while a graph is captured they are made in it.
    """
    counting = values == tuple(range(len(values)))
    if counting and device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return torch.arange(len(values), dtype=torch.int32, device=device)
    return _numbers(values, device)


@lru_cache(maxsize=64)
def _numbers(values: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.int32, device=device)


def distinct(arguments: Tensor, levels: Tensor) -> tuple[list[int], list[int], bytes | None]:
    """Rows with equal arguments `[T, .., k]` share a set.

    Returns:
        The set of each row, the first row of each set, and a key of the sets' arguments: None while
        a CUDA graph is captured. Then rows share a set only if they did in a rehearsal.
    """
    found = rehearsed()
    if capturing():
        rows = list(range(len(arguments)))
        return (*(found.pop(0) if found else (rows, rows)), None)
    sets = _distinct_on_device(arguments, levels)
    if found is not None:
        found.append(sets[:2])
    return sets


def _distinct_on_device(
    arguments: Tensor, levels: Tensor
) -> tuple[list[int], list[int], bytes | None]:
    if not arguments.is_cuda:
        return _distinct(arguments)
    version = None if levels.is_inference() else levels._version
    if version is not None and levels in _known and _known[levels][0] == version:
        return _known[levels][1]
    found = _distinct(arguments.cpu())
    if version is not None:
        _known[levels] = (version, found)
    return found


def _distinct(arguments: Tensor) -> tuple[list[int], list[int], bytes]:
    values = [row.tobytes() for row in arguments.numpy()]
    first: dict[bytes, int] = {}
    for row, value in enumerate(values):
        first.setdefault(value, row)
    place = {value: i for i, value in enumerate(first)}
    key = b"".join(first) + str(tuple(arguments.shape[1:])).encode()
    return [place[value] for value in values], list(first.values()), key


class Sets:
    """Sets of modulations by row of a table, made in runs of neighbouring sets.

    Args:
        set_of_row: the set of each row.
        sets: how many there are.
        size: bytes of a set.
        budget: bytes of the sets that are held at a time; one set is always held.

    Attributes:
        sets: as given.
        held: sets held at a time.
    """

    def __init__(self, set_of_row: Sequence[int], sets: int, size: int, budget: int) -> None:
        self._set, self.sets = set_of_row, sets
        self.held = max(1, min(sets, budget // max(1, size)))
        self._first: int | None = None
        self._run: Tensor | None = None

    def _make(self, first: int) -> Tensor:
        """The run of sets that begins at `first`, `[held or fewer, ...]`."""
        raise NotImplementedError

    def at(self, row: int) -> tuple[Tensor, int]:
        """The run that holds the set of a row, and the place of that set in it."""
        index = self._set[row]
        first = index - index % self.held
        if first != self._first:
            self._first = self._run = None  # two runs would take twice the budget
            self._run = self._make(first)
            self._first = first
        return self._run, index - first


class OwnModulations(Sets):
    """Modulations by a head's own modules and in their dtype, a set for each row of the loop.

    Nothing is read back from a device, so that a compiler can trace it. A run is
    `[held, B, (3 depth + 2) width]`.

    Args:
        head: the head.
        levels: `[T]`, or `[T, B]`.
        c: `[B, context]`.
    """

    def __init__(self, head: Head, levels: Tensor, c: Tensor) -> None:
        arguments = head.time_arguments(levels)
        time = head.embed_time(arguments.flatten(0, -2)).view(*arguments.shape[:-1], head.width)
        self._time = time if levels.dim() > 1 else time[:, None]
        self._context = head.embed_context(c)
        self._layer = head.modulation_layer()
        bias, rows = self._layer.bias, len(levels)
        size = len(c) * len(bias) * bias.element_size()
        super().__init__(range(rows), rows, size, _OWN_BUDGET)

    def _make(self, first: int) -> Tensor:
        y = F.silu(self._time[first : first + self.held] + self._context)
        return F.linear(y, *self._layer)

    def of(self, rows: Tensor, samples: Tensor) -> Tensor:
        """`[n, M]`, of one level for all samples: of each of these rows for its sample, int64
        `[n]`. Where not all rows are held they are made anew."""
        if self.held == self.sets:
            return self.at(0)[0][rows, samples]
        return F.linear(F.silu(self._time[rows, 0] + self._context[samples]), *self._layer)


class Modulations(Sets):
    """Modulations from packed weights, one set per distinct level.

    With C conditions a run is `[held, C B, M]`, M = (3 depth + 2) width, or `[held, C, M]` if all
    samples share their modulations.

    Args:
        packed: the head.
        levels: float32 `[T]`, or `[T, B]`.
        conditions: C contexts `[B, context]` of any dtype, that of c first. One that is expanded
            (stride 0 in B) is computed once.
        budget: bytes of the sets that are held at a time; one set is always held.
        invariant: compute each row as if it were alone, to the bit.

    Attributes:
        packed, invariant: as given.
    """

    def __init__(
        self,
        packed: PackedHead,
        levels: Tensor,
        conditions: Sequence[Tensor],
        *,
        budget: int = BUDGET,
        invariant: bool = False,
    ) -> None:
        head, self.packed, self.invariant = packed.head, packed, invariant
        self._weight, self._bias = packed.modulation
        self._plain = packed.plain[-1] if packed.plain else None
        arguments = head.time_arguments(levels)
        set_of_row, first, key = distinct(arguments, levels)
        chosen = arguments
        if len(first) < len(arguments):  # an index would be copied from the host
            chosen = torch.stack([arguments[row] for row in first])
        batch, ragged = len(conditions[0]), levels.dim() > 1
        with batch_invariant() if invariant else nullcontext():
            key = key if key is None else key + bytes([invariant])
            time = packed.embed_time(chosen, key)
            self._contexts, dtype = [], next(head.parameters()).dtype
            for c in conditions:
                shared = not ragged and batch > 1 and c.stride(0) == 0
                c = (c[:1] if shared else c).to(dtype)
                self._contexts.append(head.embed_context(c).float())
        self._time = time if ragged else time[:, None]
        self._batch = batch
        if all(len(c) == 1 for c in self._contexts):
            self._batch = 1
        rows = self._batch * len(conditions)
        size = rows * len(self._bias) * self._bias.element_size()
        super().__init__(set_of_row, len(first), size, budget)
        self._buffer = self._bias.new_empty(self.held, rows, len(self._bias))

    def runs(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Neighbouring rows whose sets are held at once: the rows, the sets and, int32 on their
        device, the place of each row's."""
        device, rows = self._bias.device, len(self._set)
        own = numbers(tuple(self._set), device) % self.held
        begin = 0
        while begin < rows:
            held, _ = self.at(begin)
            end = begin
            while end < rows and self._set[end] // self.held == self._set[begin] // self.held:
                end += 1
            yield slice(begin, end), held, own[begin:end]
            begin = end

    def of(self, rows: Tensor, samples: Tensor) -> Tensor:
        """`[C n, M]`, of one level for all samples: of each of these rows for its sample, int64
        `[n]`, condition after condition. Where not all sets are held they are made anew.

        Those of neighbouring rows under one condition that all samples share are a view.
        """
        count = len(self._contexts)
        whole = self.held == self.sets
        if whole and self._batch == count == 1 and rows.is_cpu and self.sets == len(self._set):
            first = int(rows[0])
            # All of them: samples at their own pace may end where one sample's rows would.
            if torch.equal(rows, torch.arange(first, first + len(rows))):
                return self.at(0)[0][first : first + len(rows), 0]
        places = numbers(tuple(self._set), rows.device)[rows].long()
        if whole:
            held = self.at(0)[0].flatten(0, 1)
            own = places * (count * self._batch) + (samples if self._batch > 1 else 0)
            ways = torch.arange(count, device=rows.device) * self._batch
            return held.index_select(0, (own + ways[:, None]).flatten())
        y = [
            self._activated(self._time[places, 0], c[samples] if len(c) > 1 else c)
            for c in self._contexts
        ]
        out = self._bias.new_empty(count * len(rows), len(self._bias))
        self._product(torch.cat(y), out)
        return out

    def _make(self, first: int) -> Tensor:
        """Into the same memory for every run, which is returned whole."""
        time = self._time[first : first + self.held]
        sets = self._buffer[: len(time)]
        if all(len(c) == self._batch for c in self._contexts):
            y = self._activated(time[:, None], torch.stack(self._contexts))
            self._product(y.flatten(0, 2), sets.flatten(0, 1))
            return self._buffer
        for i, context in enumerate(self._contexts):
            part = sets[:, i * self._batch : (i + 1) * self._batch]
            y = self._activated(time, context)
            if len(context) == self._batch >= _SEPARATE:
                for own, out in zip(y, part, strict=True):
                    self._product(own, out)
            else:
                out = sets.new_empty(*y.shape[:2], sets.shape[2])
                self._product(y.flatten(0, 1), out.flatten(0, 1))
                part.copy_(out)
        return self._buffer

    def _activated(self, time: Tensor, context: Tensor) -> Tensor:
        with batch_invariant() if self.invariant else nullcontext():
            y = F.silu(time + context)
        return y if self._weight.dim() == 4 else y.to(self._weight.dtype)

    def _product(self, y: Tensor, out: Tensor) -> None:
        """Writes the modulations of y `[n, width]` to out `[n, M]`."""
        plain = self._plain
        if plain is not None and not self.invariant and is_faster(plain.dtype, len(y)):
            torch.add(F.linear(y.to(plain.dtype), plain), self._bias, out=out)
        elif self._weight.dim() == 4:
            self._packed_product(y, out)
        elif self.invariant:
            for begin in range(0, len(self._bias), _OUTER):
                part = slice(begin, begin + _OUTER)
                out[:, part] = linear(y, self._weight[part], self._bias[part])
        else:
            torch.addmm(self._bias, y, self._weight.t(), out=out)

    def _packed_product(self, y: Tensor, out: Tensor) -> None:
        """In parts whose results stay in the cache and in memory that is used again, panel after
        panel of the matrix."""
        count = len(self._bias)
        most = max(_OUTER, _RESULT // (4 * max(1, len(y))) // PANEL * PANEL)
        for begin in range(0, count, most):
            end = min(begin + most, count)
            panels = self._weight[begin // PANEL : -(-end // PANEL)]
            out[:, begin:end] = ops.packed_linear(
                y, panels, end - begin, bias=self._bias[begin:end]
            )
