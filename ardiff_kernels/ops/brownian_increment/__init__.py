"""`brownian_increment`: increments of a Brownian path that is a function of its address."""

from __future__ import annotations

import torch
from torch import Tensor

from ...dispatch import autograd as _autograd
from ...dispatch.library import define
from .checks import check_brownian_increment, check_brownian_increment_


def _fake(key: Tensor, stream: Tensor, start: Tensor, end: Tensor, d: int) -> Tensor:
    return stream.new_empty((stream.shape[0], d), dtype=torch.float32)


_call = define(
    "brownian_increment(Tensor key, Tensor stream, Tensor start, Tensor end, SymInt d) -> Tensor",
    check=check_brownian_increment,
    fake=_fake,
)
_call_in_place = define(
    "brownian_increment_(Tensor(a!) out, Tensor key, Tensor stream, Tensor start, Tensor end)"
    " -> ()",
    check=check_brownian_increment_,
)
_autograd.without_gradient("brownian_increment_", "call brownian_increment")


def brownian_increment(key: Tensor, stream: Tensor, start: Tensor, end: Tensor, d: int) -> Tensor:
    """Increments of a Brownian path W, (W(end) - W(start)) / sqrt(|end - start|): standard normals.

    W is a function of (key, stream, element, time): increments of adjacent intervals add up to that
    of both, whichever calls ask for them, and those of intervals that do not overlap are
    independent. W is built from addressed normals by Levy's construction (midpoint displacement;
    Levy, Processus stochastiques et mouvement brownien, 1948) over 64 octaves of time, each halved
    23 times.

    Args:
        key: int64 `[1]`, the seed, on the device of the result.
        stream: int64 `[B]`, sample_id * 2^20 + patch.
        start, end: float32 `[B]` or `[1]`, times in [0, 2^32), in any order: from end to start the
            increment has the other sign. Below 2^-31 a time is taken down to a multiple of 2^-54.
        d: elements per sample, up to 2^34.

    Returns:
        float32 `[B, d]`, within 4e-6 of double precision. Zeros where `start` and `end` are equal;
        NaN where one of them is outside [0, 2^32), which could not raise without waiting for the
        device.

    Raises:
        RuntimeError: a wrong shape, dtype, device or range of `d`.

    Example:
        Two intervals and the one that they make up:

        >>> import torch
        >>> from ardiff_kernels import ops
        >>> key, stream = torch.tensor([2024]), torch.arange(3) << 20  # samples 0, 1 and 2
        >>> a, m, b = torch.tensor([0.5]), torch.tensor([2.0]), torch.tensor([40.0])
        >>> first = (m - a).sqrt() * ops.brownian_increment(key, stream, a, m, 5)
        >>> second = (b - m).sqrt() * ops.brownian_increment(key, stream, m, b, 5)
        >>> whole = (b - a).sqrt() * ops.brownian_increment(key, stream, a, b, 5)
        >>> torch.allclose(first + second, whole, atol=1e-5)
        True
    """
    return _call(key, stream, start, end, d)


def brownian_increment_(
    out: Tensor, key: Tensor, stream: Tensor, start: Tensor, end: Tensor
) -> None:
    """In-place twin of `brownian_increment`: fills `out`, float32 `[B, d]`, rows contiguous."""
    _call_in_place(out, key, stream, start, end)
