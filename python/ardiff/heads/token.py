"""A token of a diffusion head: a whole solver run, with the head hoisted and fused.

On CUDA, where the table allows it, all steps are one op, `head_loop`, and so one launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

import ardiff_kernels
from ardiff_kernels import ops

from ..batch_invariant import batch_invariant as batch_invariant_mode
from ..guide import Guidance, per_sample
from ..loop.checks import check_x0_clamp
from ..loop.cuda_graphs import check_graph, run_captured
from ..loop.lookahead import Rounds, check_lookahead, run_lookahead
from ..loop.path_noise import check_noise_name, path_noise
from ..loop.run import Decision, Runnable, make_schedule, run
from ..noise import initial_state
from ..tables.plan import Schedule
from ..tables.ragged import RaggedTable
from ..tables.table import DeviceTable, StepTable
from .base import Head
from .edm import EDMHead
from .fused import MOST_ROWS, FusedHead, fused
from .hoisting import BUDGET, Modulations, numbers
from .token_lookahead import token_in_one_launch, unsuitable_lookahead

_KINDS = ("diffusion", "uld")


def denoise_token(
    head: Any,
    context: Tensor,
    table: Runnable,
    key: Tensor,
    draw: int,
    stream: Tensor,
    *,
    uncond: Tensor | None = None,
    guidance: float | Tensor | None = None,
    uncond2: Tensor | None = None,
    guidance2: float | Tensor | None = None,
    temperature: float | Tensor = 1.0,
    x0_clamp: float | None = None,
    noise: Tensor | str | None = None,
    weights: str = "float32",
    batch_invariant: bool = False,
    budget: int = BUDGET,
    start: Tensor | None = None,
    decisions: list[Decision] | None = None,
    cuda_graph: bool | Sequence[int] = False,
    lookahead: int | str | None = None,
    mode: str | None = None,
    tolerance: float | None = None,
    rounds: list[Rounds] | None = None,
) -> Tensor:
    """Draws a token for each context: a whole solver run, with the head hoisted and fused.

    Args:
        head: a `Head` or an `EDMHead`; or a :class:`FusedHead` of one, whose own weights, batch
            invariance and budget count. Another model, as :func:`ardiff.loop.run.run` takes it,
            runs plainly, which the log says once.
        context: `[B, context]`.
        table: of any solver; a `RaggedTable` gives each token its own. For one of learned-range
            variance the head may have 2 d outputs.
        key: int64 `[1]`, the seed.
        draw: number of the first row's noise draw; 0 but for runs that share a stream.
        stream: int64 `[B]`, sample_id * 2^20 + patch.
        uncond, guidance, uncond2, guidance2: contexts like `context` and weights, a number or one
            per token, of u + w (c - u) and of u2 + w2 (u - u2) + w (c - u).
        temperature: factor on the step noise, a number or one per token.
        x0_clamp: as of :func:`ardiff.loop.run.run`.
        noise: as there; or ``"path"``: increments of a Brownian path, as of :func:`ardiff.sample`,
            for runs that do not share a stream, with a table that is no schedule yet.
        weights, batch_invariant, budget: see :class:`FusedHead`.
        start: the initial state `[B, d]`; default the addressed normals of the table's scale.
        decisions: as of :func:`ardiff.loop.run.run`.
        cuda_graph: as of :func:`ardiff.sample`: all steps are one launch.
        lookahead, mode, tolerance: as of :func:`ardiff.sample`: rows looked ahead.
        rounds: a list to which is appended what the rounds of such a run did.

    Returns:
        float32 `[B, d]`.

    Raises:
        ValueError, TypeError: shapes that do not go together, guidance without its context, an
            unknown head without `start`, `cuda_graph` with given `noise` or with a table that is no
            StepTable or RaggedTable; ``"path"`` with a table that has none, or with `draw`; what a
            lookahead refuses.

    Example:
        >>> import ardiff, torch
        >>> from ardiff.heads.mar import DiffusionHead
        >>> from ardiff.heads.token import denoise_token
        >>> from ardiff.noise import make_key, make_stream
        >>> head = DiffusionHead(dim=4, context=16, width=32, depth=2).eval()
        >>> table = ardiff.solver("ddim", path="vp-cosine", prediction="epsilon", steps=4)
        >>> key, stream = make_key(0, "cpu"), make_stream(None, 3, patch=7, device="cpu")
        >>> denoise_token(head, torch.randn(3, 16), table, key, 0, stream).shape
        torch.Size([3, 4])
    """
    batch, device = len(context), context.device
    if stream.shape != (batch,):
        raise ValueError(f"stream must have shape [{batch}], one per context, {_shape(stream)}")
    if isinstance(noise, str):
        check_noise_name(noise)
        if noise == "path" and draw:
            raise ValueError(
                f'noise="path" knows no draw, got draw={draw}: runs that share a stream would '
                "share their noise; give each a stream of its own"
            )
        noise = path_noise(table, device) if noise == "path" else None
    ahead = check_lookahead(lookahead, mode, tolerance)
    if ahead is not None:
        ahead.check(table, torch.float32 if start is None else start.dtype)
        check_x0_clamp(x0_clamp, table)
        if cuda_graph is not False:
            raise ValueError("lookahead and cuda_graph exclude each other: leave one out")
    guided = Guidance.of(uncond, guidance, uncond2, guidance2)
    for name, other in zip(("uncond", "uncond2"), guided.conditions, strict=False):
        if other.shape != context.shape:
            raise ValueError(
                f"{name} must have the shape of context {list(context.shape)}, {_shape(other)}"
            )
    model = fused(head, weights, batch_invariant=batch_invariant or None, budget=budget)
    if start is None:
        start = _start(model, table, key, draw, stream)
    elif start.dim() != 2 or len(start) != batch:
        raise ValueError(
            f"start must have shape [{batch}, d], one row per context, {_shape(start)}"
        )
    if cuda_graph is not False:
        check_graph(cuda_graph, batch, device)
        if not isinstance(table, (StepTable, RaggedTable)):
            raise TypeError(
                "cuda_graph needs a StepTable or a RaggedTable, got a " + type(table).__name__
            )
        if isinstance(noise, Tensor):
            raise ValueError("cuda_graph and noise exclude each other: leave one out")
    guided, scale = guided.per_sample(batch, device), {}
    if isinstance(temperature, Tensor) or temperature != 1:
        scale["noise_scale"] = per_sample("temperature", temperature, batch, device, low=0.0)
    modifiers = {**guided.arguments(), **scale}
    plainly = batch_invariant and not isinstance(model, FusedHead)
    context_mode = batch_invariant_mode() if plainly else nullcontext()
    if cuda_graph and batch:
        with context_mode:
            found = run_captured(
                table, model, start, tuple(start.shape), buckets=cuda_graph, key=key, draw=draw,
                stream=stream, condition=context, x0_clamp=x0_clamp, noise=noise, **modifiers,
            )  # fmt: skip
        if decisions is not None:
            decisions += found.decisions
        return found.x
    conditions = [context, *guided.conditions]
    addressed = x0_clamp is None and noise is None
    bare = addressed and isinstance(model, FusedHead) and isinstance(model.model, Head)
    if ahead is not None:
        made = None
        if bare and not unsuitable_lookahead(table, start, ahead, len(conditions)):
            made = token_in_one_launch(
                model, table, start, ahead, conditions, key=key, stream=stream, draw=draw,
                **guided.factors(), **scale,
            )  # fmt: skip
        if made is None:
            with context_mode:
                made = run_lookahead(
                    table, model, start, ahead, key=key, stream=stream, draw=draw,
                    condition=context, x0_clamp=x0_clamp, noise=noise, **modifiers,
                )  # fmt: skip
        if rounds is not None:
            rounds.append(made[1])
        return made[0]
    schedule = make_schedule(table, start)
    if draw:
        buffers = schedule.buffers
        schedule = schedule._replace(buffers=buffers._replace(draw=buffers.draw + draw))
    if bare and not unsuitable(table, schedule, start, len(conditions)):
        with torch.inference_mode():
            sets = model.modulations(schedule.buffers.level, conditions)
            found = run_token(
                schedule, table.op, sets, start, key=key, stream=stream, **guided.factors(), **scale
            )
        return found.clone()  # no inference tensor
    with context_mode:
        return run(
            schedule, model, start, key=key, stream=stream, condition=context, decisions=decisions,
            x0_clamp=x0_clamp, noise=noise, **modifiers,
        )  # fmt: skip


def _start(model: Any, table: Runnable, key: Tensor, draw: int, stream: Tensor) -> Tensor:
    if not isinstance(model, FusedHead):
        raise ValueError(
            f"denoise_token: the size of a token is not known of a {type(model).__name__}: pass "
            "start, such as ardiff.noise.initial_state gives"
        )
    head = model.model.head if isinstance(model.model, EDMHead) else model.model
    first, _, _ = head.plain_layers()
    return initial_state(table, key, stream, first.weight.shape[1], draw=draw)


def unsuitable(table: Runnable, schedule: Schedule, x: Tensor, conditions: int) -> str:
    """Why `head_loop` cannot run the table, or should not; empty if it is the way to run it."""
    if torch.compiler.is_compiling() or not x.is_cuda:
        return "head_loop gains nothing where steps are no launches"
    if ardiff_kernels.chosen_backend("head_loop_", "cuda") != "cuda":
        return "head_loop is one launch with the CUDA kernels alone"
    if x.dtype != torch.float32 or conditions * len(x) > MOST_ROWS:
        return f"head_loop is for float32 and at most {MOST_ROWS} rows"
    return unsuitable_table(table, schedule)


def unsuitable_table(table: Runnable, schedule: Schedule) -> str:
    """Why `head_loop` cannot run the rows of the table; empty if it can."""
    if not isinstance(table, (StepTable, DeviceTable)):
        return "samples have tables of their own"
    if schedule.memories > 1 or schedule.energy or any(table.midpoint):
        return "the table has a second memory, energies or midpoints"
    if table.unconditional:
        return "the table reads the unconditional prediction"
    if schedule.learned_range:
        return "the table's variance may be the head's"
    if not all(table.calls_model) or any(op not in _KINDS for op in table.op):
        return "a row of the table makes no model call, or accepts"
    return ""


def run_token(
    schedule: Schedule,
    kinds: Sequence[str],
    sets: Modulations,
    x: Tensor,
    *,
    key: Tensor,
    stream: Tensor,
    guidance: Tensor | None = None,
    guidance2: Tensor | None = None,
    noise_scale: Tensor | None = None,
) -> Tensor:
    """All rows of a table on a head, as :func:`ardiff.loop.run.run` executes them.

    Args:
        schedule: of a table that is not :func:`unsuitable_table`.
        kinds: the op of each row.
        sets: modulations of the rows, for all conditions of guidance.
        x: float32 `[N, d]`, the initial state; not changed.
        key, stream, guidance, guidance2, noise_scale: as of `run`.

    Returns:
        The final state, float32 `[N, d]`.
    """
    packed, buffers = sets.packed, schedule.buffers
    head = packed.head
    x = x.clone(memory_format=torch.contiguous_format)
    memory, v, op = torch.zeros_like(x), None, None
    if schedule.kinetic:
        v = torch.zeros_like(x)
        op = numbers(tuple(map(_KINDS.index, kinds)), x.device)
    for rows, held, places in sets.runs():
        ops.head_loop_(
            x, memory, held, places, packed.weights, packed.scales, buffers.coef[rows],
            buffers.draw[rows][:1], key, stream,
            norm=head.norm, mlp=head.mlp, depth=head.depth, eps=head.eps, v=v,
            op=None if op is None else op[rows], guidance=guidance, guidance2=guidance2,
            noise_scale=noise_scale, batch_invariant=sets.invariant,
        )  # fmt: skip
    return x


def _shape(t: Tensor) -> str:
    return f"got {list(t.shape)}"
