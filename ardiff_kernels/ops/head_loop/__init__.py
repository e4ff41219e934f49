"""`head_loop`: rows of a solver's table on a diffusion head, all of them in one op."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...dispatch import autograd as _autograd
from ...dispatch.library import define
from .checks import check_head_loop

_INPUTS = (
    "Tensor modulation, Tensor set, Tensor[] weights, Tensor[] scales, Tensor coef, Tensor draw, "
    "Tensor key, Tensor stream, *, str norm, str mlp, int depth, float eps"
)
_OPTIONS = (
    "Tensor? op=None, Tensor? guidance=None, Tensor? guidance2=None, Tensor? noise_scale=None, "
    "bool batch_invariant=False"
)
_PARTS = ("head_step", "diffusion_step", "uld_step")


def _fake(x: Tensor, memory: Tensor, *args, v: Tensor | None = None, **options):
    return torch.empty_like(x), torch.empty_like(x), x.new_empty(0 if v is None else x.shape)


_call = define(
    f"head_loop(Tensor x, Tensor memory, {_INPUTS}, Tensor? v=None, {_OPTIONS})"
    " -> (Tensor, Tensor, Tensor)",
    check=lambda *args, **options: check_head_loop("head_loop", (), *args, **options),
    fake=_fake,
    parts=_PARTS,
)
_call_in_place = define(
    f"head_loop_(Tensor(a!) x, Tensor(b!) memory, {_INPUTS}, Tensor(c!)? v=None, {_OPTIONS}) -> ()",
    check=lambda *args, **options: check_head_loop(
        "head_loop_", ("x", "memory", "v"), *args, **options
    ),
    parts=_PARTS,
)
for _name in ("head_loop", "head_loop_"):
    _autograd.without_gradient(_name, "train the module itself")


def head_loop(
    x: Tensor,
    memory: Tensor,
    modulation: Tensor,
    set: Tensor,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor],
    coef: Tensor,
    draw: Tensor,
    key: Tensor,
    stream: Tensor,
    *,
    norm: str = "layer",
    mlp: str = "plain",
    depth: int,
    eps: float,
    v: Tensor | None = None,
    op: Tensor | None = None,
    guidance: Tensor | None = None,
    guidance2: Tensor | None = None,
    noise_scale: Tensor | None = None,
    batch_invariant: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Execute rows of a solver's table on a diffusion head whose modulations are known.

    Step k evaluates the head with set ``set[k]`` (:func:`head_step`), under one condition, two with
    `guidance` or three with `guidance2`, and then row k of `coef` (:func:`diffusion_step`, or
    :func:`uld_step` where ``op[k]`` is 1, with `memory` as the anchor) with the noise of draw
    ``draw + k``. On CUDA all steps are one launch, for which a block of threads keeps its share of
    the weights in shared memory as far as that reaches; elsewhere each step is two ops.

    Args:
        x: float32 `[N, d]`, the state; unit stride in d, any row stride.
        memory: float32 `[N, d]`, as of the step ops.
        modulation: as of :func:`head_step`, `[S, R, (3 depth + 2) d_hidden]`.
        set: int32 `[steps]`, the set of each step: equal ones share it. A number outside [0, S)
            skips the step.
        weights, scales, norm, mlp, depth, eps, batch_invariant: as of :func:`head_step`; the final
            layer has d outputs.
        coef: contiguous float32 `[steps, 20]`, the rows; x_u and m_u are zero.
        draw: int32 `[N]` or `[1]`, the noise draw of the first step.
        key: int64 `[1]`.
        stream: int64 `[N]`.
        v: float32 `[N, d]`, the velocity, for tables with rows of `uld_step`.
        op: int32 `[steps]`, beside `v`: 0 for a row of `diffusion_step`, else of `uld_step`.
        guidance, guidance2: float32 `[N]` or `[1]`, weights of two- and three-way guidance; ways of
            `modulation` in the order conditional, unconditional, second unconditional.
        noise_scale: float32 `[N]` or `[1]`, the temperature.

    Returns:
        x, memory and v after the last step, fresh and contiguous (v `[0]` where it is not given).

    Raises:
        RuntimeError: shapes, dtypes, devices or strides that do not fit; an unknown norm
            or mlp; on CUDA a depth above 31.
    """
    return _call(
        x, memory, modulation, set, list(weights), list(scales), coef, draw, key, stream,
        norm=norm, mlp=mlp, depth=depth, eps=eps, v=v, op=op, guidance=guidance,
        guidance2=guidance2, noise_scale=noise_scale, batch_invariant=batch_invariant,
    )  # fmt: skip


def head_loop_(
    x: Tensor,
    memory: Tensor,
    modulation: Tensor,
    set: Tensor,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor],
    coef: Tensor,
    draw: Tensor,
    key: Tensor,
    stream: Tensor,
    *,
    norm: str = "layer",
    mlp: str = "plain",
    depth: int,
    eps: float,
    v: Tensor | None = None,
    op: Tensor | None = None,
    guidance: Tensor | None = None,
    guidance2: Tensor | None = None,
    noise_scale: Tensor | None = None,
    batch_invariant: bool = False,
) -> None:
    """:func:`head_loop` in place: x, memory and v (where given) are overwritten."""
    _call_in_place(
        x, memory, modulation, set, list(weights), list(scales), coef, draw, key, stream,
        norm=norm, mlp=mlp, depth=depth, eps=eps, v=v, op=op, guidance=guidance,
        guidance2=guidance2, noise_scale=noise_scale, batch_invariant=batch_invariant,
    )  # fmt: skip
