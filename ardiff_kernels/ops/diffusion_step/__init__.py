"""`diffusion_step`: one row of a diffusion sampler."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from ...dispatch import autograd as _autograd
from ...dispatch.library import operator
from ..diffusion_step_backward import RESULTS
from .checks import check_diffusion_step

COLUMNS = (
    *("p_x", "p_o"),
    *("x_x", "x_x_lo", "x_0", "x_m", "x_d", "x_n"),
    *("m_x", "m_x_lo", "m_0"),
    *("lv_min", "lv_max"),
    *("s_x", "s_m", "s_2"),
    *("x_3", "t_2"),
    *("x_u", "m_u"),
)


def _fake(x, model_out, memory, *args, **options) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(t.new_empty(t.shape) for t in (x, memory, x))


@operator(check=partial(check_diffusion_step, "diffusion_step", ()), fake=_fake, rowwise=True)
def diffusion_step(
    x: Tensor,
    model_out: Tensor,
    memory: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Execute one row of coefficients on a state, with one normal per element.

    With D = x - memory and a normal n::

        x0      = p_x x + p_o out                      (clamped to +-x0_clamp if given)
        x0u     = p_x x + p_o uncond_out               (clamped as x0)
        x'      = x_x x + x_0 x0 + x_u x0u + x_m memory + x_d D + x_n n
        memory' = m_x x + m_0 x0 + m_u x0u, or memory where these columns are all zero

    With `memory` of `[B, 2d]` the second half is memory2 (an anchor or an older prediction). Then
    D = x - memory2, and from the old values::

        memory2' = s_x x + s_m memory + s_2 memory2, or memory2 where these columns are all zero

    With `memory` of `[B, 3d]` the last third is memory3: x' has the term x_3 memory3 besides, and
    memory3' = t_2 memory2, or memory3 where t_2 is zero.

    One row is a step of DDPM, DDIM, DPM-Solver++(2M), an Euler or flow step, or of unadjusted
    Langevin with `memory` as the anchor. x_x and m_x are float32 pairs (hi, lo). A zero
    coefficient drops its term whatever the tensor holds, NaN included. Differentiable in x,
    memory, the model outputs and given normals (`diffusion_step_backward`), not in the others.

    Args:
        x: `[B, d]`, float32 or bfloat16 (computed in float32, rounded to nearest even); unit inner
            stride, any row stride. Or `[B, ...]`, contiguous inside a row: then so are the others,
            and what is `[B, 2d]` below is twice as long in dimension 1.
        memory: like x, or `[B, 2d]` or `[B, 3d]` with a second and a third memory.
        model_out: `[B, d]` float32, float16 or bfloat16; or `[B, 2d]`, whose second half r in
            [-1, 1] interpolates the log-variance of the noise between lv_min and lv_max (Nichol &
            Dhariwal 2021) on rows with x_n != 0. Guidance acts on the first half only.
        coef: float32 `[T, 20]`, columns `COLUMNS`.
        row: int32 `[B]` or `[1]`, the row of each sample; outside [0, T) a sample is finished, its
            state is copied unchanged and its x0 is its state.
        draw: int32 `[B]` or `[1]`, each sample's step count, which addresses the noise.
        key: int64 `[1]`.
        stream: int64 `[B]`, sample_id * 2^20 + patch.
        uncond_out, guidance: classifier-free guidance u + w (c - u); like `model_out`, and
            float32 `[B]` or `[1]`. Without them x0u is x0.
        uncond_out2, guidance2: three-way guidance u2 + w2 (u1 - u2) + w (c - u1).
        noise_scale: float32 `[B]` or `[1]`, multiplies the step noise (temperature).
        noise: float32 `[B, d]` normals used in place of the addressed ones.
        x0_clamp: positive bound on the data prediction.

    Returns:
        New x, new memory and x0, contiguous, of the shapes of x, memory and x and of x's dtype.

    Raises:
        RuntimeError: a wrong shape, dtype, device, stride or combination of options, or an
            argument without a gradient that requires grad.

    Example:
        An Euler step of a flow, x + 0.25 out, whose data prediction is x - 0.5 out:

        >>> import torch
        >>> from ardiff_kernels import ops
        >>> from ardiff_kernels.ops.diffusion_step import COLUMNS
        >>> coef = torch.zeros(1, 20)
        >>> for column, value in {"p_x": 1.0, "p_o": -0.5, "x_x": 1.5, "x_0": -0.5}.items():
        ...     coef[0, COLUMNS.index(column)] = value
        >>> x, out = torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 8.0]])
        >>> zero = torch.zeros(1, dtype=torch.int32)
        >>> place = coef, zero, zero, torch.tensor([2024]), torch.tensor([0])
        >>> ops.diffusion_step(x, out, torch.zeros(1, 2), *place)
        (tensor([[2., 4.]]), tensor([[0., 0.]]), tensor([[-1., -2.]]))
    """


_STATE = ("x", "memory", "x0", "z_model")


@operator(
    check=partial(check_diffusion_step, "diffusion_step_", _STATE),
    written=_STATE,
    options_of=diffusion_step,
    rowwise=True,
)
def diffusion_step_(
    x: Tensor,
    model_out: Tensor,
    memory: Tensor,
    coef: Tensor,
    row: Tensor,
    draw: Tensor,
    key: Tensor,
    stream: Tensor,
    *,
    x0: Tensor | None = None,
    z_model: Tensor | None = None,
    **options: Tensor | float | None,
) -> None:
    """In-place twin of `diffusion_step` for eager loops and CUDA graphs; writes x and memory.

    Takes the options of `diffusion_step`, and `x0` (`[B, d]` of x's dtype) and `z_model`
    (bfloat16 `[B, d]`), filled with the data prediction and a copy of the new x for the model.
    Inside `torch.compile`, and for gradients, use the functional form.
    """


def _constants(arguments: Mapping[str, Any]) -> dict[str, Any]:
    memories = arguments["memory"].shape[1] // arguments["x"].shape[1]
    return {"x0_clamp": arguments["x0_clamp"], "memories": memories}


_autograd.differentiable("diffusion_step", _autograd.Formula(inputs=RESULTS, constants=_constants))
_autograd.without_gradient("diffusion_step_", "call diffusion_step")
