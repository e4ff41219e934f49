"""`diffusion_step_backward`: the transposed row of `diffusion_step`, for autograd."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from ...dispatch.library import operator, options
from .checks import check_diffusion_step_backward

RESULTS = ("x", "model_out", "memory", "uncond_out", "uncond_out2", "noise")
ALL = 2 ** len(RESULTS) - 1


def results(
    x: Tensor,
    model_out: Tensor,
    memories: int,
    wanted: int,
    given: SimpleNamespace,
) -> list[tuple[torch.Size, torch.dtype]]:
    """Shape and dtype of each result: `[0]` where it is not wanted, or its input is absent."""
    rows, d = x.shape
    memory = (rows, memories * d)
    model = (model_out.shape, model_out.dtype)
    noise = torch.float64 if x.dtype == torch.float64 else torch.float32
    kinds = [(x.shape, x.dtype), model, (memory, x.dtype), model, model, (x.shape, noise)]
    absent = (given.uncond_out is None) * 8 + (given.uncond_out2 is None) * 16
    return [
        (shape if (wanted & ~absent) >> i & 1 else (0,), dtype)
        for i, (shape, dtype) in enumerate(kinds)
    ]


def _fake(grad_x, grad_memory, grad_x0, x, model_out, *args, memories=1, wanted=ALL, **given):
    given = options("diffusion_step_backward", given)
    kinds = results(x, model_out, memories, wanted, given)
    return tuple(x.new_empty(shape, dtype=kind) for shape, kind in kinds)


@operator(check=check_diffusion_step_backward, fake=_fake)
def diffusion_step_backward(
    grad_x: Tensor | None,
    grad_memory: Tensor | None,
    grad_x0: Tensor | None,
    x: Tensor,
    model_out: Tensor,
    coef: Tensor,
    row: Tensor,
    draw: Tensor,
    key: Tensor,
    stream: Tensor,
    *,
    uncond_out: Tensor | None = None,
    uncond_out2: Tensor | None = None,
    guidance: Tensor | None = None,
    guidance2: Tensor | None = None,
    noise_scale: Tensor | None = None,
    noise: Tensor | None = None,
    x0_clamp: float | None = None,
    memories: int = 1,
    wanted: int = ALL,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `diffusion_step`'s inputs from those of its results, in one launch.

    The transposed row, with G0 and Gu the gradients that reach the data predictions x0 and x0u
    before their clamp (zero where the clamp holds, for which they are computed again)::

        G0     = grad_x0 + x_0 grad_x + m_0 grad_memory
        Gu     = x_u grad_x + m_u grad_memory        (part of G0 without an unconditional output)
        x      = x_x grad_x + x_d grad_x + m_x grad_memory + s_x grad_memory2 + p_x (G0 + Gu)
        memory = x_m grad_x - x_d grad_x + s_m grad_memory2  (+ grad_memory if the memory stays)
        out    = p_o G0
        noise  = x_n grad_x

    With a second memory the term of x_d is its own, beside s_2 grad_memory2 (or grad_memory2 if it
    stays) and t_2 grad_memory3; that of a third is x_3 grad_x (+ grad_memory3 if it stays).
    Guidance spreads `out` over the model outputs by its weights, and `uncond_out` gets p_o Gu
    besides; the second half of a `[B, 2d]` output gets the gradient of the learned deviation, from
    the normals of the step. A zero coefficient drops its term whatever the gradient holds. On
    finished rows the gradients of the state pass through, grad_x0 to x, and the others are zero.

    Args:
        grad_x, grad_memory, grad_x0: of x's dtype, of the shapes of the results of
            `diffusion_step`; at least one; None counts as zero.
        x, model_out, coef, row, draw, key, stream, and the options: as given to `diffusion_step`.
        memories: 1, 2 or 3: its memory was `[B, memories * d]`.
        wanted: bit i asks for result i of `RESULTS`.

    Returns:
        Gradients of `RESULTS`, contiguous, of the inputs' shapes and dtypes; that of the noise
        float32. Empty `[0]` where not wanted, and for unconditional outputs that are not given.

    Raises:
        RuntimeError: a wrong shape, dtype, device or stride, or no gradient at all.
    """
