"""`packed_linear`: a linear layer of few rows, fused with what surrounds it in a block."""

from __future__ import annotations

from torch import Tensor

from ...dispatch import autograd as _autograd
from ...dispatch.library import define
from .checks import check_packed_linear, outputs
from .packing import PackedWeight, pack_linear

__all__ = ["PackedWeight", "pack_linear", "packed_linear"]


def _fake(x: Tensor, weight: Tensor, rows: int, *, activation: str = "none", **options) -> Tensor:
    return x.new_empty((x.shape[0], outputs(rows, activation)))


_call = define(
    "packed_linear(Tensor x, Tensor weight, int rows, *, Tensor? scale=None, Tensor? bias=None, "
    'Tensor? norm=None, float eps=1e-6, str activation="none", Tensor? gate=None, '
    "Tensor? residual=None) -> Tensor",
    check=lambda *args, **options: check_packed_linear("packed_linear", *args, **options),
    fake=_fake,
)
_autograd.without_gradient("packed_linear", "train with torch.nn.functional.linear")


def packed_linear(
    x: Tensor,
    weight: Tensor,
    rows: int,
    *,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    norm: Tensor | None = None,
    eps: float = 1e-6,
    activation: str = "none",
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """A linear layer and what surrounds it in a block: residual + gate act(W n(x) + b).

    n(x) is the RMS norm x / sqrt(mean(x^2) + eps) times `norm` (Zhang and Sennrich 2019), or x
    without it. act is nothing, SiLU, or SwiGLU (Shazeer 2020): silu(g) u of the upper half g and
    the lower half u of W n(x) + b. The matrix is packed once by `ardiff_kernels.pack_linear`, which
    also puts several matrices of one input (Q, K and V) below each other.

    The bits of a row of the result depend on no other row of x and not on their number, on every
    backend. Sums are float32. n(x) is multiplied as float32 by float32 weights. By bfloat16
    weights it may be rounded to bfloat16, and by int8 weights to integers of 16 bits with one scale
    per row (sums are then exact in 32 bits), as the instructions of a CPU take them; on a CPU
    `ARDIFF_CPU_EXACT=1` keeps float32. A row of x that is not finite gives a row of NaN where it is
    rounded to integers.

    Args:
        x: float32 or bfloat16 `[N, K]`, unit stride in K, any row stride.
        weight: the packed matrix W `[O, K]`, float32, bfloat16 or int8.
        rows: O.
        scale: float32 `[O]`, the factor of each row of an int8 matrix.
        bias: float32 `[O]`.
        norm: float32 `[K]`, weight of the RMS norm.
        eps: of the norm.
        activation: none, silu, or swiglu (O even; gate above up).
        gate: float32 `[N, O]` or `[1, O]` (swiglu: O / 2 columns), unit stride in O.
        residual: `[N, O]` (swiglu: O / 2 columns) in the dtype of x, unit stride in O.

    Returns:
        `[N, O]` (swiglu: `[N, O / 2]`) in the dtype of x, contiguous.

    Raises:
        RuntimeError: a wrong shape, dtype, device or stride; an unknown activation; int8 weights
            without scale, or scale without them.

    Example:
        >>> import torch
        >>> from ardiff_kernels import ops, pack_linear
        >>> layer = torch.nn.Linear(64, 32)
        >>> packed = pack_linear(layer.weight)
        >>> x = torch.randn(3, 64)
        >>> y = ops.packed_linear(x, packed.weight, packed.rows, bias=layer.bias.detach())
        >>> torch.allclose(y, layer(x), atol=1e-5)
        True
    """
    return _call(
        x,
        weight,
        rows,
        scale=scale,
        bias=bias,
        norm=norm,
        eps=eps,
        activation=activation,
        gate=gate,
        residual=residual,
    )
