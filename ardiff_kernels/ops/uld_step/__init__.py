"""`uld_step`: one row of a kinetic (position and velocity) sampler."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from ...dispatch import autograd as _autograd
from ...dispatch.library import operator
from ..uld_step_backward import RESULTS
from .checks import check_uld_step

COLUMNS = (
    *("z_z", "z_z_lo", "z_d", "z_v", "z_o", "z_1", "z_2"),
    *("v_z", "v_d", "v_v", "v_o", "v_1"),
    *("a_z", "a_z_lo"),
)


def _fake(z, v, model_out, anchor, *args, **options) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(z.new_empty(z.shape) for _ in range(3))


@operator(check=partial(check_uld_step, "uld_step", ()), fake=_fake, rowwise=True)
def uld_step(
    z: Tensor,
    v: Tensor,
    model_out: Tensor,
    anchor: Tensor,
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
    noise2: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Execute one row of coefficients on position and velocity, with two normals per element.

    With D = z - anchor (0 on a row with a_z != 0) and normals n1, n2::

        z'      = z_z z + z_d D + z_v v + z_o out + z_1 n1 + z_2 n2
        v'      = v_z z + v_d D + v_v v + v_o out + v_1 n1
        anchor' = a_z z  where a_z != 0, else anchor

    It serves underdamped Langevin (Cheng et al. 2018's exponential integrator), BAOAB and their
    kin on the centred reverse transition kernel. z_z and a_z are float32 pairs (hi, lo). A zero
    coefficient drops its term whatever the tensor holds, NaN included. Differentiable in the
    state, the model outputs and given normals (`uld_step_backward`), not in the others.

    Args:
        z, v, anchor: float32 `[B, d]`; unit inner stride, any row stride. Or `[B, ...]`, contiguous
            inside a row: then so are the others.
        model_out: `[B, d]` float32, float16 or bfloat16.
        coef: float32 `[T, 20]`, columns `COLUMNS`.
        row: int32 `[B]` or `[1]`, the row of each sample; outside [0, T) a sample is finished and
            its state is copied unchanged.
        draw: int32 `[B]` or `[1]`, each sample's step count, which addresses the noise.
        key: int64 `[1]`.
        stream: int64 `[B]`, sample_id * 2^20 + patch.
        uncond_out, guidance: classifier-free guidance u + w (c - u); like `model_out`, and
            float32 `[B]` or `[1]`.
        uncond_out2, guidance2: three-way guidance u2 + w2 (u1 - u2) + w (c - u1).
        noise_scale: float32 `[B]` or `[1]`, multiplies the step noise (temperature).
        noise, noise2: float32 `[B, d]` normals used in place of the addressed ones.

    Returns:
        New z, v and anchor, contiguous float32 of the shape of z.

    Raises:
        RuntimeError: a wrong shape, dtype, device, stride or combination of options, or an
            argument without a gradient that requires grad.

    Example:
        A row that begins at z, moves by the velocity and damps it; without noise:

        >>> import torch
        >>> from ardiff_kernels import ops
        >>> from ardiff_kernels.ops.uld_step import COLUMNS
        >>> coef = torch.zeros(1, 20)
        >>> for column, value in {"z_z": 1.0, "z_v": 0.5, "v_v": 0.25, "a_z": 1.0}.items():
        ...     coef[0, COLUMNS.index(column)] = value
        >>> z, v = torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 8.0]])
        >>> zero = torch.zeros(1, dtype=torch.int32)
        >>> place = coef, zero, zero, torch.tensor([2024]), torch.tensor([0])
        >>> ops.uld_step(z, v, torch.zeros(1, 2), torch.zeros(1, 2), *place)
        (tensor([[3., 6.]]), tensor([[1., 2.]]), tensor([[1., 2.]]))
    """


_STATE = ("z", "v", "anchor", "z_model")


@operator(
    check=partial(check_uld_step, "uld_step_", _STATE),
    written=_STATE,
    options_of=uld_step,
    rowwise=True,
)
def uld_step_(
    z: Tensor,
    v: Tensor,
    model_out: Tensor,
    anchor: Tensor,
    coef: Tensor,
    row: Tensor,
    draw: Tensor,
    key: Tensor,
    stream: Tensor,
    *,
    z_model: Tensor | None = None,
    **options: Tensor | None,
) -> None:
    """In-place twin of `uld_step` for eager loops and CUDA graphs; writes z, v and anchor.

    Takes the options of `uld_step`, and `z_model`: bfloat16 `[B, d]`, filled with a copy of the
    new z for the model. Inside `torch.compile`, and for gradients, use the functional form.
    """


_autograd.differentiable(
    "uld_step",
    _autograd.Formula(
        inputs=RESULTS,
        constants=lambda arguments: {"dtype": arguments["model_out"].dtype},
    ),
)
_autograd.without_gradient("uld_step_", "call uld_step")
