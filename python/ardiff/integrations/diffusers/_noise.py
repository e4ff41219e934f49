"""Where the noise of a scheduler's steps comes from: `torch.Generator`s or a seed, and ids."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...noise import MAX_SAMPLE_ID, stream_of

Generators = torch.Generator | Sequence[torch.Generator] | None
BASES = 2**62  # a generator gives the first stream of its rows, below this


def check_ids(sample_ids: Sequence[int] | Tensor | None) -> tuple[int, ...] | None:
    """The ids as integers; ValueError outside [0, 2^43)."""
    if sample_ids is None:
        return None
    ids = tuple(int(i) for i in sample_ids)
    if any(not 0 <= i < MAX_SAMPLE_ID for i in ids):
        raise ValueError(f"sample_ids must be integers in [0, 2^43), got {list(ids)}")
    return ids


class Noise:
    """Key and streams of the rows of a batch, drawn once per run.

    Row i has the stream base + id_i 2^20. The base is 0 with a seed, which is then the key, and
    else one number from the generator; of a list of generators each gives its own row's base. So a
    row's noise does not depend on the other rows.
    """

    def __init__(self) -> None:
        self._source: object = self
        self._begun: int | None = None
        self._last = -1
        self._base: Tensor | None = None
        self._rows: tuple = ()

    def __reduce__(self) -> tuple:
        return (Noise, ())  # a copy of a scheduler begins anew, and holds no generator

    def address(
        self,
        index: int,
        generator: Generators,
        seed: int | None,
        sample_ids: tuple[int, ...] | None,
        batch: int,
        device: torch.device,
    ) -> tuple[Tensor, Tensor]:
        """(key, stream) of step `index`; a run ends where the index does not grow.

        Raises:
            ValueError: a number of ids or generators other than `batch`, or both lists at once.
        """
        if isinstance(generator, (list, tuple)):
            generator = generator[0] if len(generator) == 1 else tuple(generator)
        if seed is not None:
            generator = None
        begun = _seeds(generator)
        again = generator != self._source or begun != self._begun or index <= self._last
        rows = (batch, device, sample_ids, seed)
        if again or rows != self._rows:
            if seed is not None:
                self._base = None
            elif again or isinstance(generator, tuple) or not _on(self._base, device):
                self._base = _draw(generator, batch, device)
            self._stream = self._streams(generator, sample_ids, batch, device)
            self._source, self._begun, self._rows = generator, begun, rows
        self._last = index
        return _key(seed or 0, device), self._stream

    def _streams(self, generator, sample_ids, batch: int, device) -> Tensor:
        if isinstance(generator, tuple):
            if sample_ids is not None:
                raise ValueError("pass sample_ids or a list of generators, not both")
            return self._base
        if sample_ids is not None and len(sample_ids) != batch:
            raise ValueError(f"sample_ids must be {batch} integers, got {len(sample_ids)}")
        if sample_ids is None and batch == 1 and self._base is not None:
            return self._base
        ids = _ids(batch if sample_ids is None else sample_ids, device)
        return ids if self._base is None else ids + self._base


CPU = torch.device("cpu")
MADE_AHEAD = tuple(stream_of(torch.arange(n)) for n in range(65))  # no op in a step


# These wait for their copy, once for each device: a cached tensor is read on any stream.
@functools.lru_cache(maxsize=64)
def _made_ids(ids: int | tuple[int, ...], device: torch.device) -> Tensor:
    numbers = np.arange(ids) if isinstance(ids, int) else np.array(ids)
    with torch.inference_mode(False):
        return torch.from_numpy(stream_of(numbers.astype(np.int64))).to(device)


def _ids(ids: int | tuple[int, ...], device: torch.device) -> Tensor:
    """Streams of ids, or of the first ids, int64."""
    if device == CPU and isinstance(ids, int) and ids < len(MADE_AHEAD):
        return MADE_AHEAD[ids]
    return _made_ids(ids, device)


@functools.lru_cache(maxsize=64)
def _key(seed: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.from_numpy(np.array([seed], np.int64)).to(device)


_key(0, CPU)  # made ahead too


def unused_address(batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A key and streams for ops that draw nothing, which leave every generator as it is."""
    return _key(0, device), _ids(batch, device)


def _on(base: Tensor | None, device: torch.device) -> bool:
    return base is not None and base.device == device


def _seeds(generator: torch.Generator | tuple | None) -> object:
    if isinstance(generator, tuple):
        return tuple(g.initial_seed() for g in generator)
    return None if generator is None else generator.initial_seed()


def _draw(generator: torch.Generator | tuple | None, batch: int, device: torch.device) -> Tensor:
    if isinstance(generator, tuple):
        if len(generator) != batch:
            raise ValueError(
                f"a list of generators needs one for each of {batch} samples, got {len(generator)}"
            )
        return torch.cat([_draw(g, 1, device) for g in generator])
    source = "cpu" if generator is None else generator.device
    drawn = torch.randint(0, BASES, (1,), generator=generator, device=source)
    # pageable memory is staged before this returns, and the device is not waited for
    return drawn if drawn.device == device else drawn.to(device, non_blocking=True)
