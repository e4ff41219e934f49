"""`philox_normal`: the addressed standard normals themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from ...dispatch import autograd as _autograd
from ...dispatch.library import define
from .checks import check_philox_normal, check_philox_normal_


def _fake(key: Tensor, counter: int, stream: Tensor, n: int) -> Tensor:
    return stream.new_empty((stream.shape[0], n), dtype=torch.float32)


_call = define(
    "philox_normal(Tensor key, SymInt counter, Tensor stream, SymInt n) -> Tensor",
    check=check_philox_normal,
    fake=_fake,
)
_call_in_place = define(
    "philox_normal_(Tensor(a!) out, Tensor key, SymInt counter, Tensor stream) -> ()",
    check=check_philox_normal_,
)
_autograd.without_gradient("philox_normal_", "call philox_normal")


def philox_normal(key: Tensor, counter: int, stream: Tensor, n: int) -> Tensor:
    """Standard normals as a pure function of their address; no generator state.

    Philox4x32-10 (Salmon et al., SC 2011) with Box-Muller. Words agree to the bit on every
    backend, normals within 2e-6 of double precision.

    Args:
        key: int64 `[1]`, the seed, on the device of the result.
        counter: counter word c1 = 4 * draw + purpose, in [0, 2^32); purpose 0 is step noise,
            1 the initial state, 2 the accept uniform, 3 a velocity refresh.
        stream: int64 `[B]`, sample_id * 2^20 + patch.
        n: elements per sample, up to 2^34.

    Returns:
        float32 `[B, n]`.

    Raises:
        RuntimeError: a wrong shape, dtype, device or range.

    Example:
        The noise of a sample does not depend on the samples beside it:

        >>> import torch
        >>> from ardiff_kernels import ops
        >>> key, stream = torch.tensor([2024]), torch.arange(3) << 20  # samples 0, 1 and 2
        >>> together = ops.philox_normal(key, 4 * 7, stream, 5)  # the step noise of draw 7
        >>> alone = ops.philox_normal(key, 4 * 7, stream[1:2], 5)
        >>> torch.equal(alone, together[1:2])
        True
    """
    return _call(key, counter, stream, n)


def philox_normal_(out: Tensor, key: Tensor, counter: int, stream: Tensor) -> None:
    """In-place twin of `philox_normal`: fills `out`, float32 `[B, n]` with unit inner stride."""
    _call_in_place(out, key, counter, stream)
