"""The modulations of a token: all levels and conditions in a few large matrix products."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ardiff_kernels import ops

from .batch_invariant import batch_invariant, linear
from .head_weights import PackedHead

BUDGET = 64 << 20  # bytes of modulations held at a time
_SEPARATE = 32  # rows from which a set is a product of its own
_OUTER = 1024  # outputs of a batch-invariant product on a GPU: the weights stay in the cache
# Rows up to which `head_step` streams weights faster than PyTorch's product: 6 rows took 12 ms for
# 74, 100 rows 146 for 155, 256 rows 354 for 280 (20480 outputs of 1024, AMD EPYC with AVX2, two
# threads, torch 2.13).
_FEW = 64

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
        a CUDA graph is captured, whose replays may bring other levels; nothing is shared then.
    """
    if arguments.is_cuda:
        if torch.cuda.is_current_stream_capturing():
            return list(range(len(arguments))), list(range(len(arguments))), None
        version = None if levels.is_inference() else levels._version
        if version is not None and levels in _known and _known[levels][0] == version:
            return _known[levels][1]
        found = _distinct(arguments.cpu())
        if version is not None:
            _known[levels] = (version, found)
        return found
    return _distinct(arguments)


def _distinct(arguments: Tensor) -> tuple[list[int], list[int], bytes]:
    values = [row.tobytes() for row in arguments.numpy()]
    first: dict[bytes, int] = {}
    for row, value in enumerate(values):
        first.setdefault(value, row)
    place = {value: i for i, value in enumerate(first)}
    key = b"".join(first) + str(tuple(arguments.shape[1:])).encode()
    return [place[value] for value in values], list(first.values()), key


class Modulations:
    """Sets of modulations, one for each distinct level, made in runs within a memory budget.

    Args:
        packed: the head.
        levels: float32 `[T]`, or `[T, B]`.
        conditions: `ways` contexts `[B, context]` of any dtype. One that is expanded (stride 0 in
            B) is computed once.
        budget: bytes of the sets that are held at a time; one set is always held.
        invariant: compute each row as if it were alone, to the bit.

    Attributes:
        packed: as given.
        sets: how many.
        held: sets held at a time.
        invariant: as given.
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
        arguments = head.time_arguments(levels)
        self._set, first, key = distinct(arguments, levels)
        self.sets = len(first)
        chosen = arguments if self.sets == len(arguments) else arguments[first]
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
        self.held = max(1, min(self.sets, budget // max(1, size)))
        self._buffer = self._bias.new_empty(self.held, rows, len(self._bias))
        self._first: int | None = None

    def at(self, row: int) -> tuple[Tensor, int]:
        """Sets `[held, ways B, M]`, or `[held, ways, M]` if all samples share them, and the place
        of the row's."""
        index = self._set[row]
        first = index - index % self.held
        if first != self._first:
            self._fill(first)
            self._first = first
        return self._buffer, index - first

    def runs(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Neighbouring rows whose sets are held at once: the rows, the sets and, int32 on their
        device, the place of each row's."""
        device, rows = self._buffer.device, len(self._set)
        own = numbers(tuple(self._set), device) % self.held
        begin = 0
        while begin < rows:
            held, _ = self.at(begin)
            end = begin
            while end < rows and self._set[end] // self.held == self._set[begin] // self.held:
                end += 1
            yield slice(begin, end), held, own[begin:end]
            begin = end

    def _fill(self, first: int) -> None:
        time = self._time[first : first + self.held]
        sets = self._buffer[: len(time)]
        if all(len(c) == self._batch for c in self._contexts):
            y = self._activated(time[:, None], torch.stack(self._contexts))
            self._product(y.flatten(0, 2), sets.flatten(0, 1))
            return
        for way, context in enumerate(self._contexts):
            part = sets[:, way * self._batch : (way + 1) * self._batch]
            y = self._activated(time, context)
            if len(context) == self._batch >= _SEPARATE:
                for own, out in zip(y, part, strict=True):
                    self._product(own, out)
            else:
                out = sets.new_empty(*y.shape[:2], sets.shape[2])
                self._product(y.flatten(0, 1), out.flatten(0, 1))
                part.copy_(out)

    def _activated(self, time: Tensor, context: Tensor) -> Tensor:
        with batch_invariant() if self.invariant else nullcontext():
            return F.silu(time + context).to(self._weight.dtype)

    def _product(self, y: Tensor, out: Tensor) -> None:
        """Writes the modulations of y `[n, width]` to out `[n, M]`."""
        if y.is_cpu and (self.invariant or len(y) <= _FEW):
            out.copy_(self._skinny(y))
        elif self.invariant:
            for begin in range(0, len(self._bias), _OUTER):
                part = slice(begin, begin + _OUTER)
                out[:, part] = linear(y, self._weight[part], self._bias[part])
        else:
            torch.addmm(self._bias, y, self._weight.t(), out=out)

    def _skinny(self, y: Tensor) -> Tensor:
        """The product by `head_step`, whose rows do not depend on each other: a head of zeros whose
        final shift is y."""
        rows, width = y.shape
        empty, zeros = y.new_empty(0), y.new_zeros(width)
        block = [zeros[None], empty, zeros[:, None], empty]
        return ops.head_step(
            y.new_zeros(rows, 1), F.pad(y, (3 * width, width))[None], 0,
            [zeros[:, None], empty, *block, self._weight, self._bias], (),
            depth=1, eps=1.0, batch_invariant=self.invariant,
        )[0]  # fmt: skip
