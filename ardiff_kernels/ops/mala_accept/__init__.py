r"""`mala_accept`: the Metropolis test of a proposal, and the state that it selects.

Why MALA needs no energy. Let g = f + quadratic, G = grad g and d = y - x. The proposal
y = x - tau G_x + sqrt(2 tau) n has the log-ratio of densities::

    log q(y, x) - log q(x, y) = (|d + tau G_x|^2 - |d - tau G_y|^2) / (4 tau)
                              = d.(G_x + G_y) / 2 + (tau / 4) (|G_x|^2 - |G_y|^2)

By the trapezoid g(x) - g(y) = -d.(G_x + G_y) / 2, exact for the quadratic part. The two products
with d cancel: log alpha = (tau / 4) (|G_x|^2 - |G_y|^2) + C, where C is what the trapezoid misses
of f(x) - f(y). HMC has no proposal ratio but kinetic energy: c_d = -1/2 and c_v = 1.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ...dispatch import autograd as _autograd
from ...dispatch.library import operator
from .checks import check_accept

COLUMNS = ("g_z", "g_d", "g_o", "s_z", "s_o", "c_g", "c_d", "c_v", "r2", "R2")


class MalaAccept(NamedTuple):
    """The state after the test; the docstring of :func:`mala_accept` has the shapes."""

    x: Tensor
    out: Tensor
    v: Tensor
    energy: Tensor
    accepted: Tensor
    log_alpha: Tensor


def _fake(
    x, y, out_x, out_y, anchor, *args, v_x=None, energy_x=None, **options
) -> tuple[Tensor, ...]:
    rows = x.shape[0]
    return (
        x.new_empty(x.shape),
        out_x.new_empty(x.shape),
        x.new_empty((0,) if v_x is None else x.shape),
        x.new_empty((0 if energy_x is None else rows,)),
        x.new_empty((rows,), dtype=torch.bool),
        x.new_empty((rows,)),
    )


@operator(check=partial(check_accept, "mala_accept", ()), fake=_fake, rowwise=True)
def mala_accept(
    x: Tensor,
    y: Tensor,
    out_x: Tensor,
    out_y: Tensor,
    anchor: Tensor,
    coef: Tensor,
    row: Tensor,
    draw: Tensor,
    key: Tensor,
    stream: Tensor,
    *,
    v_x: Tensor | None = None,
    v_y: Tensor | None = None,
    out_mid: Tensor | None = None,
    energy_x: Tensor | None = None,
    energy_y: Tensor | None = None,
    ball_radius: Tensor | None = None,
) -> MalaAccept:
    """Accept or reject the proposal y of each sample x, and select state, output and energy.

    With score(z) = s_z z + s_o out, G(z) = g_z z + g_d (z - anchor) + g_o out (the gradient of
    g = -log target) and d = y - x::

        log_alpha = c_g (|G_x|^2 - |G_y|^2) + c_d d.(G_x + G_y) + c_v (|v_x|^2 - |v_y|^2) / 2 + C
        C = 0                                                              trapezoid
            (2/3) d.(score_mid - (score_x + score_y) / 2)                  Simpson, with out_mid
            (energy_x - energy_y) - d.(score_x + score_y) / 2              with energies

    MALA with step tau (Roberts and Tweedie 1996): c_g = tau / 4. HMC (Duane et al. 1987):
    c_d = -1/2, c_v = 1. A proposal is accepted where log u < log_alpha, u being word 0 of quad 0
    at counter 4 draw + 2, and the projection allows it: |d|^2 <= r2 where r2 > 0 and
    |y|^2 <= R2 where R2 > 0. On a rejection the sample stays at x and the velocity becomes -v_x.
    A learned or guided score is no gradient, so without energies the acceptance is approximate.

    The sums of a sample are taken in an order that depends on d alone. A zero coefficient drops
    its term whatever the tensors hold, NaN included, but a NaN or inf in y or out_y rejects. From
    an origin without density (energy_x = +inf) every proposal of finite energy is accepted, and
    none whose energy is +inf too: the chain stays until one is finite.

    Args:
        x, y, anchor: origin, proposal and kernel's centre, float32 `[B, d]`; unit inner stride. Or
            `[B, ...]`, contiguous inside a row: then so are the others.
        out_x, out_y: model outputs there, `[B, d]` float32, float16 or bfloat16.
        coef: float32 `[T, 20]`, columns `COLUMNS`.
        row: int32 `[B]` or `[1]`; outside [0, T) a sample is finished: y and what belongs to it
            are returned unchanged, not accepted, with log_alpha 0.
        draw: int32 `[B]` or `[1]`, each sample's step count, which addresses the uniform.
        key: int64 `[1]`.
        stream: int64 `[B]`, sample_id * 2^20 + patch.
        v_x, v_y: velocities at origin (where the trajectory starts) and proposal, float32 `[B, d]`.
        out_mid: model output at (x + y) / 2, like out_x.
        energy_x, energy_y: -log p at x and y up to one constant, float32 `[B]`; p is the density
            whose score is s_z z + s_o out.
        ball_radius: float32 `[B]` or `[1]`, R of each sample in place of the column; 0 is no ball.

    Returns:
        A named tuple: x float32 of x's shape; out in the outputs' dtype; v float32 (`[0]` when not
        given); energy float32 `[B]` (`[0]` when not given); accepted bool `[B]`; and log_alpha
        float32 `[B]`, -inf where NaN or inf in y, out_y, energy_y or the sums, or NaN in energy_x,
        rejected the sample, +inf where energy_x is +inf or log_alpha exceeds float32, else finite.

    Raises:
        RuntimeError: a wrong shape, dtype, device, stride or combination of options.

    Example:
        Hamiltonian Monte Carlo on a normal target, whose gradient G(z) = z: energy falls in sample
        0, which is accepted, and rises by far in sample 1:

        >>> import torch
        >>> from ardiff_kernels import ops
        >>> from ardiff_kernels.ops.mala_accept import COLUMNS
        >>> coef = torch.zeros(1, 20)
        >>> for column, value in {"g_z": 1.0, "c_d": -0.5, "c_v": 1.0}.items():
        ...     coef[0, COLUMNS.index(column)] = value
        >>> x, y = torch.tensor([[2.0], [0.0]]), torch.tensor([[0.0], [9.0]])
        >>> v, none = torch.zeros(2, 1), torch.zeros(2, 1)
        >>> zero = torch.zeros(1, dtype=torch.int32)
        >>> place = coef, zero, zero, torch.tensor([2024]), torch.tensor([0, 1 << 20])
        >>> found = ops.mala_accept(x, y, none, none, none, *place, v_x=v, v_y=v)
        >>> found.accepted, found.log_alpha
        (tensor([ True, False]), tensor([  2.0000, -40.5000]))
        >>> found.x
        tensor([[0.],
                [0.]])
    """


_STATE = ("y", "out_y", "v_y", "energy_y", "accepted", "log_alpha")


@operator(
    check=partial(check_accept, "mala_accept_", _STATE),
    written=_STATE,
    options_of=mala_accept,
    rowwise=True,
)
def mala_accept_(
    x: Tensor,
    y: Tensor,
    out_x: Tensor,
    out_y: Tensor,
    anchor: Tensor,
    coef: Tensor,
    row: Tensor,
    draw: Tensor,
    key: Tensor,
    stream: Tensor,
    *,
    accepted: Tensor,
    log_alpha: Tensor,
    **options: Tensor | None,
) -> None:
    """In-place twin of `mala_accept`: y, out_y, v_y and energy_y become the selected state.

    Takes the options of `mala_accept`; accepted (bool `[B]`) and log_alpha (float32 `[B]`) are
    filled. Of the state only the rows of rejected samples are written.
    """


for _op in ("mala_accept", "mala_accept_"):
    _autograd.without_gradient(_op, "detach it")
