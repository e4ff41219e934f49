"""`head_lookahead` as its definition says: `lookahead_draft`, `head_step` and `lookahead_verify`,
round after round.

It runs on whatever backend serves these; in float64 when x is float64 (the oracle of the tests).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._shared.rows import compute_dtype
from .._shared.tables import TABLE_WIDTH
from ..diffusion_step import COLUMNS as DIFFUSION
from ..head_loop.checks import ways_of
from ..head_loop.reference import part
from ..lookahead_draft import COLUMNS

_CALLS = COLUMNS.index("calls")


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
    norm: str,
    mlp: str,
    depth: int,
    eps: float,
    v: Tensor | None = None,
    op: Tensor | None = None,
    guidance: Tensor | None = None,
    guidance2: Tensor | None = None,
    noise_scale: Tensor | None = None,
    tolerance: float | None = None,
    batch_invariant: bool = False,
) -> tuple[Tensor, ...]:
    ways = ways_of("head_lookahead", guidance, guidance2)
    head = {"norm": norm, "mlp": mlp, "depth": depth, "eps": eps}
    head |= {"batch_invariant": batch_invariant, "ways": ways}
    draft, verify, evaluate = (
        part(name, x) for name in ("lookahead_draft", "lookahead_verify", "head_step")
    )
    (batch, d), T, dtype = x.shape, len(coef), compute_dtype(x)
    x, memory = (t.clone(memory_format=torch.contiguous_format) for t in (x, memory))
    velocity = None if v is None else v.clone(memory_format=torch.contiguous_format)
    sets = modulation.unflatten(1, (ways, modulation.shape[1] // ways))
    weights_of = {"guidance": guidance, "guidance2": guidance2}
    known: dict[str, Tensor] = {}
    options = {"op": op, "noise_scale": noise_scale}

    rows = min(rows, T)
    window = torch.arange(rows, device=x.device)
    row = torch.zeros(batch, dtype=torch.int32, device=x.device)
    rounds, accepted, evaluated = (torch.zeros_like(row) for _ in range(3))
    while bool((row < T).any()):
        count = (T - row).clamp(max=rows)
        place = (coef, plan, row, count, draw, key, stream)
        states, velocities, drafts = draft(
            x, memory, *place, rows, v=velocity, **options, **known
        )  # fmt: skip
        at = (row[:, None] + window).clamp(max=T - 1).long()
        calls = (window < count[:, None]) & (plan[at, _CALLS] != 0)
        wanted = calls & (set[at] >= 0) & (set[at] < len(modulation))
        sample, j = wanted.nonzero(as_tuple=True)
        outs = torch.zeros(batch, rows, d, dtype=dtype, device=x.device)
        if len(sample):
            own = sample if sets.shape[2] > 1 else torch.zeros_like(sample)
            chosen = sets[set[at[sample, j]].long(), :, own].transpose(0, 1).flatten(0, 1)
            found = evaluate(states[sample, j], chosen[None], 0, weights, scales, **head)
            out, *uncond = found.unbind(0)
            given = {
                name: t if t is None or len(t) == 1 else t[sample] for name, t in weights_of.items()
            }
            others = dict(zip(("uncond_out", "uncond_out2"), uncond, strict=False))
            outs[sample, j] = _guided(out, given | others, stream[sample], key)
        kinetic = {} if velocity is None else {"velocities": velocities}
        x, new_v, memory, x0, gain, new, kept = verify(
            states, drafts, outs, memory, *place, **kinetic, **options, **known,
            tolerance=tolerance,
        )  # fmt: skip
        velocity = None if velocity is None else new_v
        known = {
            "known_x": states[:, :rows], "known_0": x0, "gain": gain, "known_row": row,
            "known_count": count,
        }  # fmt: skip
        rounds += (count > 0).int()
        evaluated += calls.sum(1, dtype=torch.int32)
        accepted += kept
        row = new
    return x, memory, x.new_empty(0) if v is None else velocity, rounds, accepted, evaluated


def _guided(out: Tensor, options: dict[str, Tensor | None], stream: Tensor, key: Tensor) -> Tensor:
    """The guided output as the step ops round it: a row that makes it the new state."""
    coef = torch.zeros(1, TABLE_WIDTH, device=out.device)
    coef[0, [DIFFUSION.index(name) for name in ("p_o", "x_0")]] = 1.0
    zero = torch.zeros(1, dtype=torch.int32, device=out.device)
    state = torch.zeros_like(out)
    place = (coef, zero, zero, key, stream)
    return part("diffusion_step", state)(state, out, state, *place, **options)[0]
