"""`uld_step_backward`: the transposed row of `uld_step`, for autograd."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from ...dispatch.library import operator, options
from .checks import check_uld_step_backward

RESULTS = ("z", "v", "model_out", "anchor", "uncond_out", "uncond_out2", "noise", "noise2")
ALL = 2 ** len(RESULTS) - 1


def results(
    shape: torch.Size,
    dtype: torch.dtype,
    model_dtype: torch.dtype,
    wanted: int,
    given: SimpleNamespace,
) -> list[tuple[torch.Size, torch.dtype]]:
    """Shape and dtype of each result: `[0]` where it is not wanted, or its input is absent."""
    absent = (given.guidance is None) * 16 + (given.guidance2 is None) * 32
    model = ("model_out", "uncond_out", "uncond_out2")
    return [
        (shape if (wanted & ~absent) >> i & 1 else (0,), model_dtype if name in model else dtype)
        for i, name in enumerate(RESULTS)
    ]


def _fake(grad_z, grad_v, grad_anchor, *args, dtype=torch.float32, wanted=ALL, **given):
    grad = next(g for g in (grad_z, grad_v, grad_anchor) if g is not None)
    kinds = results(grad.shape, grad.dtype, dtype, wanted, options("uld_step_backward", given))
    return tuple(grad.new_empty(shape, dtype=kind) for shape, kind in kinds)


@operator(check=check_uld_step_backward, fake=_fake)
def uld_step_backward(
    grad_z: Tensor | None,
    grad_v: Tensor | None,
    grad_anchor: Tensor | None,
    coef: Tensor,
    row: Tensor,
    *,
    guidance: Tensor | None = None,
    guidance2: Tensor | None = None,
    noise_scale: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    wanted: int = ALL,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `uld_step`'s inputs from those of its results, in one launch.

    The step is linear, so that this is the transposed row and needs no state::

        out  = z_o grad_z + v_o grad_v            D = z_d grad_z + v_d grad_v
        z    = z_z grad_z + v_z grad_v + D        (+ a_z grad_anchor instead of D if a_z != 0)
        v    = z_v grad_z + v_v grad_v
        anchor = grad_anchor - D                  (0 if a_z != 0)
        n1   = z_1 grad_z + v_1 grad_v            n2 = z_2 grad_z

    and guidance spreads `out` over the model outputs by its weights. A zero coefficient drops its
    term whatever the gradient holds. On finished rows the gradients of the state pass through and
    the others are zero.

    Args:
        grad_z, grad_v, grad_anchor: float32 `[B, d]`, at least one; None counts as zero.
        coef, row, guidance, guidance2, noise_scale: as given to `uld_step`.
        dtype: of the model outputs, and so of their gradients.
        wanted: bit i asks for result i of `RESULTS`.

    Returns:
        Gradients of `RESULTS`, contiguous `[B, d]`: float32, those of the model outputs of `dtype`.
        Empty `[0]` where not wanted, and for an unconditional output without its guidance.

    Raises:
        RuntimeError: a wrong shape, dtype, device or stride, or no gradient at all.
    """
