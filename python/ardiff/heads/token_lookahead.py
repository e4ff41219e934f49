"""A token of a diffusion head in rounds of drafted rows, all of them one op: on CUDA one launch.

What :mod:`ardiff.heads.token` is to the loop over rows, this is to :mod:`ardiff.loop.lookahead`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ardiff_kernels
from ardiff_kernels import ops
from ardiff_kernels.ops.head_lookahead import Looked

from ..loop.lookahead import Lookahead, Rounds
from ..tables.lookahead import lookahead_table, refusal
from ..tables.table import StepTable
from .fused import MOST_ROWS, FusedHead
from .hoisting import Modulations, numbers


def unsuitable_lookahead(table: Any, x: Tensor, lookahead: Lookahead, conditions: int) -> str:
    """Why `head_lookahead` cannot run the table, or should not; empty if it is the way to run it.

    Beside that all modulations must be held at once (:func:`all_held`).
    """
    if torch.compiler.is_compiling() or not x.is_cuda:
        return "head_lookahead gains nothing where rounds are no launches"
    if ardiff_kernels.chosen_backend("head_lookahead", "cuda") != "cuda":
        return "head_lookahead is one launch with the CUDA kernels alone"
    reason = unsuitable_rounds(table, lookahead)
    if reason:
        return reason
    if x.dtype != torch.float32 or conditions * len(x) * _rows(table, lookahead) > MOST_ROWS:
        return f"head_lookahead is for float32 and at most {MOST_ROWS} rows of all tokens"
    return ""


def unsuitable_rounds(table: Any, lookahead: Lookahead) -> str:
    """Why `head_lookahead` cannot run the rows of the table so; empty if it can."""
    if not isinstance(table, StepTable):
        return "samples have tables of their own"
    if lookahead.rows == "auto":
        return "each sample has a number of rows that follows its last round"
    return refusal(table)


def all_held(sets: Modulations) -> bool:
    """Whether the budget holds the modulations of all rows, which rounds need in any order."""
    return sets.held >= sets.sets


def token_in_one_launch(
    model: FusedHead,
    table: StepTable,
    x: Tensor,
    lookahead: Lookahead,
    conditions: Sequence[Tensor],
    **others: Any,
) -> tuple[Tensor, Rounds] | None:
    """As :func:`ardiff.loop.lookahead.run_lookahead`, by `head_lookahead`; None where the budget of
    the head does not hold all modulations. `others` as of :func:`run_token_lookahead`."""
    with torch.inference_mode():
        sets = model.modulations(lookahead_table(table, x.device).level, conditions)
        if not all_held(sets):
            return None
        x, found = run_token_lookahead(table, sets, x, lookahead, **others)
    return x.clone(), rounds_of(found)  # no inference tensor


def run_token_lookahead(
    table: StepTable,
    sets: Modulations,
    x: Tensor,
    lookahead: Lookahead,
    *,
    key: Tensor,
    stream: Tensor,
    draw: int = 0,
    guidance: Tensor | None = None,
    guidance2: Tensor | None = None,
    noise_scale: Tensor | None = None,
) -> tuple[Tensor, Looked]:
    """All rows of a table on a head, as :func:`ardiff.loop.lookahead.run_lookahead` executes them.

    Args:
        table: one that is not :func:`unsuitable_rounds`.
        sets: modulations of its rows, for all conditions of guidance; :func:`all_held`.
        x: float32 `[N, d]`, the initial state; not changed.
        lookahead: with a number of rows.
        key, stream, draw, guidance, guidance2, noise_scale: as of `run_lookahead`.

    Returns:
        The final state, float32 `[N, d]`, and all that the op gives; see :func:`rounds_of`.

    Raises:
        ValueError: a table, a lookahead or modulations that do not suit.
    """
    reason = unsuitable_rounds(table, lookahead)
    if reason:
        raise ValueError(f"head_lookahead cannot run solver {table.solver} so: {reason}")
    if not all_held(sets):
        raise ValueError(
            f"head_lookahead needs all {sets.sets} sets of modulations at once, and the budget "
            f"holds {sets.held}: raise budget"
        )
    plan, packed = lookahead_table(table, x.device), sets.packed
    head = packed.head
    ((_, held, places),) = sets.runs()
    memory = x.new_zeros(len(x), x.shape[1] * table.memories)
    found = ops.head_lookahead(
        x, memory, held, places, packed.weights, packed.scales, plan.coef, plan.plan,
        numbers((draw,), x.device), key, stream, _rows(table, lookahead),
        norm=head.norm, mlp=head.mlp, depth=head.depth, eps=head.eps,
        v=None if plan.op is None else torch.zeros_like(x), op=plan.op, guidance=guidance,
        guidance2=guidance2, noise_scale=noise_scale, tolerance=lookahead.tolerance,
        batch_invariant=sets.invariant,
    )  # fmt: skip
    return found.x, found


def rounds_of(found: Looked) -> Rounds:
    """What the rounds did, by one copy from the device; the op does not tell of single windows."""
    rounds, evaluated = torch.stack([found.rounds, found.evaluated]).cpu().numpy()
    return Rounds(np.zeros((0, 4), np.int32), rounds.astype(np.int64), int(evaluated.sum()))


def _rows(table: StepTable, lookahead: Lookahead) -> int:
    return min(lookahead.most, len(table))
