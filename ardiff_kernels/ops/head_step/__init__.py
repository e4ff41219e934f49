"""`head_step`: one evaluation of a diffusion head whose modulations are already known."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...dispatch import autograd as _autograd
from ...dispatch.library import define
from ..packed_linear.packing import matrix_shape
from .checks import check_head


def _fake(
    x: Tensor, modulation: Tensor, set: int, weights: Sequence[Tensor], *args, ways: int = 1, **rest
) -> Tensor:
    return x.new_empty((ways, x.shape[0], matrix_shape(weights[-2])[0]))


_call = define(
    "head_step(Tensor x, Tensor modulation, SymInt set, Tensor[] weights, Tensor[] scales, *, "
    "str norm, str mlp, int depth, float eps, int ways=1, bool batch_invariant=False) -> Tensor",
    check=lambda *args, **options: check_head("head_step", *args, **options),
    fake=_fake,
)
_autograd.without_gradient("head_step", "train the module itself")


def head_step(
    x: Tensor,
    modulation: Tensor,
    set: int,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor] = (),
    *,
    norm: str = "layer",
    mlp: str = "plain",
    depth: int,
    eps: float,
    ways: int = 1,
    batch_invariant: bool = False,
) -> Tensor:
    """What is left of a diffusion head in the sampling loop: input projection, blocks, final layer.

    With h = x W_in + b_in and, for each block, its shift s, scale m (1 + scale, any affine of the
    norm folded in) and gate g of width w: h += g MLP(n m + s), and at last W_out (n m + s) + b_out
    with the final shift and scale. Two choices, each independent of the other, make a head's form:

    - `norm`: layer, where n is h less its mean over sqrt(var + eps), the variance being that of the
      w elements; or rms, n = h / sqrt(mean(h^2) + eps);
    - `mlp`: plain, MLP(y) = W2 silu(W1 y + b1) + b2; or gated (SwiGLU),
      MLP(y) = Wd (silu(Wg y + bg) * (Wu y + bu)) + bd.

    MAR's head (Li et al. 2024) and that of Pocket-TTS are layer and plain, that of VibeVoice is rms
    and gated. Sums are float32.

    Each of N patches is evaluated under `ways` conditions (guidance), which share the input
    projection. Results do not depend on the number of threads.

    Args:
        x: float32 `[N, d]`, unit stride in d, any row stride.
        modulation: contiguous float32 or bfloat16 `[S, R, (3 depth + 2) w]`: S sets, of which one
            is used; R = ways N, row way N + n belonging to patch n, or R = ways: shared by all
            patches. Columns: s, m, g of each block in turn, then s, m of the final layer.
        set: which set, in [0, S).
        weights: matrix, bias of the input `[w, d]`; for each block matrix, bias `[f, w]` and
            matrix, bias `[w, f]` (gated: gate above up `[2 f, w]`, then down `[w, f]`); of the
            final layer `[out, w]`. Matrices are contiguous float32, bfloat16 or int8, those of all
            blocks alike, input and final like them or float32. A bias is float32, `[0]` for none.
            On a CPU a matrix of whole panels and steps of columns may be packed, as
            `ardiff_kernels.pack_linear` packs it, which is faster; see `packed_linear` for how
            packed bfloat16 and int8 weights are multiplied.
        scales: empty, or with int8 matrices one tensor per matrix in their order: float32, the
            factor of each row of an int8 matrix, or `[0]` for a matrix that is not int8.
        norm: layer or rms.
        mlp: plain or gated.
        depth: number of blocks.
        eps: of the norms.
        ways: 1, 2 or 3 conditions per patch.
        batch_invariant: the bits of a patch's results depend on no other patch, on N, `ways` or its
            place. The C++ kernels always compute so.

    Returns:
        float32 `[ways, N, out]`, contiguous.

    Raises:
        RuntimeError: a wrong number, shape, dtype, device or stride; a number outside its range;
            an unknown norm or mlp.

    Example:
        A head of width 8 with one block, for 3 patches of 4 elements:

        >>> import torch
        >>> from ardiff_kernels import ops
        >>> d, width, depth = 4, 8, 1
        >>> shapes = [(width, d), (width, width), (width, width), (d, width)]
        >>> weights = [t for s in shapes for t in (torch.randn(s), torch.zeros(s[0]))]
        >>> modulation = torch.randn(2, 1, (3 * depth + 2) * width)  # 2 sets, shared by all patches
        >>> out = ops.head_step(torch.randn(3, d), modulation, 1, weights, depth=depth, eps=1e-6)
        >>> out.shape
        torch.Size([1, 3, 4])
    """
    return _call(
        x,
        modulation,
        set,
        list(weights),
        list(scales),
        norm=norm,
        mlp=mlp,
        depth=depth,
        eps=eps,
        ways=ways,
        batch_invariant=batch_invariant,
    )
