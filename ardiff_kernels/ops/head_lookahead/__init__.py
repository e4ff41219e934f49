"""`head_lookahead`: rows of a solver's table on a diffusion head, in rounds of drafted rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...dispatch import autograd as _autograd
from ...dispatch.library import define
from .checks import check_head_lookahead


class Looked(NamedTuple):
    """What the rounds gave; the docstring of :func:`head_lookahead` has the shapes."""

    x: Tensor
    memory: Tensor
    v: Tensor
    rounds: Tensor
    accepted: Tensor
    evaluated: Tensor


def _fake(x: Tensor, memory: Tensor, *args, v: Tensor | None = None, **options):
    counts = [x.new_empty(len(x), dtype=torch.int32) for _ in range(3)]
    new = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, memory)]
    return *new, x.new_empty(0 if v is None else x.shape), *counts


_call = define(
    "head_lookahead(Tensor x, Tensor memory, Tensor modulation, Tensor set, Tensor[] weights, "
    "Tensor[] scales, Tensor coef, Tensor plan, Tensor draw, Tensor key, Tensor stream, int rows, "
    "*, str norm, str mlp, int depth, float eps, Tensor? v=None, Tensor? op=None, "
    "Tensor? guidance=None, Tensor? guidance2=None, Tensor? noise_scale=None, "
    "float? tolerance=None, bool batch_invariant=False)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    check=check_head_lookahead,
    fake=_fake,
    parts=("head_step", "diffusion_step", "lookahead_draft", "lookahead_verify"),
)
_autograd.without_gradient("head_lookahead", "train the module itself")


def head_lookahead(
    x: Tensor,
    memory: Tensor,
    modulation: Tensor,
    set: Tensor,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor],
    coef: Tensor,
    plan: Tensor,
    draw: Tensor,
    key: Tensor,
    stream: Tensor,
    rows: int,
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
    tolerance: float | None = None,
    batch_invariant: bool = False,
) -> Looked:
    """Execute every row of a solver's table on a diffusion head, several rows of a patch at once.

    A round drafts the next `rows` rows of each patch (:func:`lookahead_draft`), evaluates the head
    at all their states (:func:`head_step`, row i with set ``set[i]``), under one condition, two
    with `guidance` or three with `guidance2`, and keeps the rows that hold
    (:func:`lookahead_verify`). Patches go at their own pace, and rounds end when all have ended.
    Since the modulations of all levels are known, a round costs little more than a step: the
    weights are read once for all its rows. On CUDA all rounds are one launch, as of `head_loop`;
    elsewhere a round is these three ops, and the host reads how far the patches are.

    Args:
        x: float32 `[N, d]`, the state; unit stride in d, any row stride.
        memory: float32 `[N, d]`, or `[N, 2d]` with a second memory, as of the step ops.
        modulation: as of :func:`head_step`, `[S, R, (3 depth + 2) d_hidden]`.
        set: int32 `[T]`, the set of each row of the table: equal ones share it. Outside [0, S) the
            head's output is taken as 0.
        weights, scales, norm, mlp, depth, eps, batch_invariant: as of :func:`head_step`; the final
            layer has d outputs.
        coef, plan: contiguous float32 `[T, 20]`, as of :func:`lookahead_draft`. A row whose `calls`
            is 0 is not evaluated.
        draw: int32 `[N]` or `[1]`, the noise draw of row 0.
        key: int64 `[1]`.
        stream: int64 `[N]`.
        rows: L, 1 or more.
        v: float32 `[N, d]`, the velocity, for tables with rows of `uld_step`.
        op: int32 `[T]`, beside `v`: 1 for a row of `uld_step`, else 0.
        guidance, guidance2, noise_scale: as of :func:`head_loop`.
        tolerance: as of :func:`lookahead_verify`; None keeps rows by law.

    Returns:
        A named tuple. x, memory, v: the final states, fresh and contiguous (v `[0]` where it is not
        given). rounds, accepted, evaluated: int32 `[N]`, of each patch its rounds, the rows kept as
        drafted, and the states at which the head was evaluated (conditions not counted).

    Raises:
        RuntimeError: shapes, dtypes, devices or strides that do not fit; an unknown norm or mlp;
            `rows` below 1; a negative tolerance; on CUDA a depth above 31 or more than 2^30 rows of
            all patches and conditions.
    """
    return Looked(
        *_call(
            x, memory, modulation, set, list(weights), list(scales), coef, plan, draw, key, stream,
            rows, norm=norm, mlp=mlp, depth=depth, eps=eps, v=v, op=op, guidance=guidance,
            guidance2=guidance2, noise_scale=noise_scale, tolerance=tolerance,
            batch_invariant=batch_invariant,
        )
    )  # fmt: skip
