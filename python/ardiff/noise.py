"""Noise has an address: a normal is a pure function of (key, stream, draw, purpose, element).

There is no generator state, so sample i is the same alone, in any batch, in any order and on any
shard. The parts of an address:

    key       the seed, int64
    stream    which patch of which sample: sample_id * 2^20 + patch, int64
    draw      the number of the step within the patch, from 0
    purpose   what the noise is for, one of :class:`Purpose`
    element   the place within the sample

`ardiff_kernels.ops.philox_normal` makes the normals at an address; the step ops make them inside.
The only places that know how an address is laid out are this module, `ardiff_kernels` (Purpose and
counter_word, which make counter word c1) and `csrc/math/noise_address.h`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ardiff_kernels import Purpose, counter_word, ops

__all__ = [
    "MAX_PATCHES", "MAX_SAMPLE_ID", "Address", "Purpose", "Spans", "counter_word", "initial_state",
    "make_key", "make_stream", "sample_id_of", "stream_of",
]  # fmt: skip

_PATCH_BITS = 20
MAX_PATCHES = 2**_PATCH_BITS
MAX_SAMPLE_ID = 2**43

Spans = Sequence[tuple[slice, Tensor]]  # slices of neighbouring samples, each with its key
Integers = TypeVar("Integers", int, Tensor, np.ndarray)


class Address(NamedTuple):
    """Where the noise of one launch lies, in the order in which the ops take it.

    Attributes:
        draw: int32 `[1]` or `[B]`, the number of each sample's own step.
        key: int64 `[1]`, the seed.
        stream: int64 `[B]`, see :func:`stream_of`.

    Example:
        >>> import torch
        >>> from ardiff.noise import Address, make_key, make_stream
        >>> draw = torch.zeros(1, dtype=torch.int32)
        >>> where = Address(draw, make_key(0, "cpu"), make_stream([5, 9], 2, 0, "cpu"))
        >>> [len(part) for part in where]
        [1, 1, 2]
    """

    draw: Tensor
    key: Tensor
    stream: Tensor


def stream_of(sample_id: Integers, patch: Integers | int = 0) -> Integers:
    """The stream of a patch of a sample, sample_id * 2^20 + patch; of integers or int64 arrays."""
    return (sample_id << _PATCH_BITS) + patch


def sample_id_of(stream: Integers) -> Integers:
    """The sample id of a stream: what :func:`stream_of` was given."""
    return stream >> _PATCH_BITS


def make_key(
    seed: int | None, device: torch.device | str, generator: torch.Generator | None = None
) -> Tensor:
    """The key, int64 `[1]` on `device`: the seed itself, or drawn for None.

    Args:
        seed: any int64, also NumPy's integers; None draws one from `generator`, by default torch's
            own, so that `torch.manual_seed` makes it reproducible and every call draws another.

    Raises:
        TypeError, ValueError: a seed that is no integer, or does not fit in int64.

    Example:
        >>> from ardiff.noise import make_key
        >>> make_key(42, "cpu")
        tensor([42])
    """
    if seed is None:
        source = "cpu" if generator is None else generator.device
        drawn = torch.randint(
            -(2**63), 2**63 - 1, (1,), generator=generator, device=source, dtype=torch.int64
        )
        return drawn.to(device)
    if isinstance(seed, (bool, np.bool_)) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed must be an integer or None, got {type(seed).__name__}")
    seed = int(seed)
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed must fit in int64, got {seed}")
    return torch.tensor([seed], dtype=torch.int64, device=device)


def make_stream(
    sample_ids: Sequence[int] | Tensor | None, batch: int, patch: int, device: torch.device | str
) -> Tensor:
    """The streams of a batch at one patch, int64 `[batch]`; ids 0 to batch - 1 for None.

    Raises:
        ValueError: ids that are not `batch` integers in [0, 2^43), or a patch outside [0, 2^20).

    Example:
        The noise of sample 5 does not depend on the batch that it is drawn in::

            >>> import torch
            >>> from ardiff.noise import Purpose, counter_word, make_key, make_stream
            >>> from ardiff_kernels import ops
            >>> key, counter = make_key(0, "cpu"), counter_word(0, Purpose.INITIAL_STATE)
            >>> alone, batch = (make_stream(ids, len(ids), 0, "cpu") for ids in ([5], [2, 5]))
            >>> normal = ops.philox_normal(key, counter, alone, 4)
            >>> torch.equal(normal[0], ops.philox_normal(key, counter, batch, 4)[1])
            True
    """
    if not 0 <= patch < MAX_PATCHES:
        raise ValueError(f"patch must be in [0, {MAX_PATCHES}), got {patch}")
    if sample_ids is None:
        ids = torch.arange(batch, dtype=torch.int64, device=device)
    else:
        ids = _as_ids(sample_ids)
        if ids.dim() != 1 or len(ids) != batch:
            raise ValueError(
                f"sample_ids must be {batch} integers, one per sample, got shape {list(ids.shape)}"
            )
        if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= MAX_SAMPLE_ID):
            bad = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
            raise ValueError(f"sample_ids must be in [0, 2^43), got {bad}")
        ids = ids.to(device)
    return stream_of(ids, patch)


def _as_ids(sample_ids: Sequence[int] | Tensor) -> Tensor:
    try:
        ids = torch.as_tensor(sample_ids if isinstance(sample_ids, Tensor) else list(sample_ids))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"sample_ids must be integers in [0, 2^43): {error}") from None
    if len(ids.shape) and ids.numel() == 0:
        return ids.long()
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"sample_ids must be integers, got {str(ids.dtype)[6:]}")
    return ids.long()


def initial_state(
    table: Any,
    key: Tensor | Spans,
    stream: Tensor,
    d: int,
    dtype: torch.dtype = torch.float32,
    draw: int = 0,
) -> Tensor:
    """Where a run of `table` begins: its `init_scale` times the addressed normals.

    Args:
        table: anything with `init_scale`, a number or a function of a device, such as a StepTable
            or a RaggedTable.
        key: int64 `[1]`; or the spans of samples that share one.
        stream: int64 `[B]`.
        d: elements per sample.
        dtype: of the result.
        draw: of the run's first row; 0 unless several runs share a stream.

    Returns:
        `[B, d]` on the device of `stream`.
    """
    counter = counter_word(draw, Purpose.INITIAL_STATE)
    if isinstance(key, Tensor):
        normal = ops.philox_normal(key, counter, stream, d)
    else:
        parts = [ops.philox_normal(own, counter, stream[rows], d) for rows, own in key]
        normal = torch.cat(parts)
    scale = table.init_scale
    return (normal * (scale(stream.device) if callable(scale) else scale)).to(dtype)
