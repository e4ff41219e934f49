"""`ardiff.sample`: draw samples from any callable denoiser."""

from __future__ import annotations

import dataclasses
import math
import operator
import time
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from .guide import Guidance, per_sample
from .loop.adapt_tau import make_ladder
from .loop.checks import check_signature, check_x0_clamp
from .loop.cuda_graphs import check_graph, run_captured
from .loop.divergence import check_mode, find, first_rows, make_sums, report
from .loop.lookahead import check_lookahead, run_lookahead
from .loop.model_calls import CountedModel, shaped_energy
from .loop.path_noise import check_noise_name, path_noise
from .loop.run import Decision, make_schedule, run
from .loop.stats import SampleStats, collect, warn_of_acceptance
from .noise import initial_state, make_key, make_stream, sample_id_of
from .solvers import default_solver, solver_options
from .solvers import solver as make_table
from .tables.paths import Path
from .tables.ragged import RaggedTable
from .tables.table import StepTable


def _check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    try:
        sizes = tuple(operator.index(n) for n in shape)
    except TypeError:
        raise TypeError(f"shape must be a sequence of integers (B, ...), got {shape!r}") from None
    if len(sizes) < 2 or sizes[0] < 0 or any(n < 1 for n in sizes[1:]):
        raise ValueError(f"shape must be (B, ...) with B >= 0 and sizes >= 1 after, got {shape!r}")
    return sizes


def choose_table(
    table: StepTable | RaggedTable | str | PathLike | None,
    choices: dict[str, Any],
    options: dict,
    sizes: tuple[int, ...],
) -> StepTable | RaggedTable:
    """The table given, or the one that solver, steps and options make for samples of `sizes`."""
    if table is None:
        name, steps = choices.pop("solver"), choices.pop("steps")
        needed = {**choices, "steps": steps}
        missing = [name for name, value in needed.items() if value is None]
        if missing:
            raise TypeError(f"sample needs {', '.join(missing)}, or a table from ardiff.solver")
        several = isinstance(steps, (Tensor, list, tuple))
        if name is None and several:
            raise TypeError(
                "sample needs solver where steps differ per sample: the default depends on the "
                "number of steps, ardiff.default_solver(steps) says how"
            )
        name = default_solver(steps) if name is None else name
        if "dim" in solver_options(name):
            dim = options.setdefault("dim", math.prod(sizes[1:]))
            if dim != math.prod(sizes[1:]):
                raise ValueError(
                    f"dim is {dim}, but the samples have {math.prod(sizes[1:])} elements"
                )
        if several:
            return _ragged(name, steps, choices | options, sizes[0])
        return make_table(name, steps=steps, **choices, **options)
    if isinstance(table, (str, PathLike)):
        table = StepTable.load(table)
    if not isinstance(table, (StepTable, RaggedTable)):
        raise TypeError(
            "table must be a StepTable, a RaggedTable or the name of a table file, got "
            f"{type(table).__name__}"
        )
    given = [name for name, value in {**choices, **options}.items() if value is not None]
    if given:
        raise TypeError(f"a table fixes the solver: do not pass {', '.join(given)} beside it")
    return table


def _ragged(name: str, steps: Tensor | Sequence[int], options: dict, batch: int) -> RaggedTable:
    """A table for each number of steps that occurs."""
    counts = torch.as_tensor(steps)
    if counts.shape != (batch,) or counts.is_floating_point() or counts.dtype == torch.bool:
        raise ValueError(
            f"steps must be an integer or {batch} integers, one per sample, got shape "
            f"{list(counts.shape)} of {str(counts.dtype)[6:]}"
        )
    if batch == 0:
        raise ValueError("steps for each sample needs one sample or more")
    distinct, index = counts.cpu().unique(return_inverse=True)
    return RaggedTable([make_table(name, steps=n, **options) for n in distinct.tolist()], index)


def sample(
    model_fn: Callable,
    shape: Sequence[int],
    path: str | Path | None = None,
    prediction: str | None = None,
    solver: str | None = None,
    steps: int | Sequence[int] | Tensor | None = None,
    seed: int | None = None,
    condition: Any = None,
    sample_ids: Sequence[int] | Tensor | None = None,
    return_stats: bool = False,
    *,
    table: StepTable | RaggedTable | str | PathLike | None = None,
    uncond: Any = None,
    guidance: float | Tensor | None = None,
    uncond2: Any = None,
    guidance2: float | Tensor | None = None,
    temperature: float | Tensor = 1.0,
    x0_clamp: float | None = None,
    noise: str = "step",
    patch: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
    energy_fn: Callable[[Tensor, Tensor, Any], Tensor] | None = None,
    nonfinite: str = "warn",
    adapt: str | None = None,
    target_acceptance: float = 0.57,
    cuda_graph: bool | Sequence[int] = False,
    lookahead: int | str | None = None,
    mode: str | None = None,
    tolerance: float | None = None,
    **options,
) -> Tensor | tuple[Tensor, SampleStats]:
    """Sample with any denoiser. Sample i is a function of (seed, sample_ids[i], patch) alone.

    Args:
        model_fn: ``model_fn(x, level, condition) -> output``: x of `shape`, level float32 `[B]` in
            the path's own time (t for ``ou`` and ``flow``, sigma for ``edm``, the fractional
            training timestep for ``vp-*``), the output of x's shape, or (B, 2 C, ...)
            for a table of learned-range variance. Or an object with ``hoist``
            (:class:`ardiff.loop.run.HoistableModel`). A function gets copies of its own, and is
            called with gradients off: a score that autograd makes turns them on by
            `torch.enable_grad`. `hoist` and what it returns run in `torch.inference_mode`.
        shape: (B, ...), the batch first.
        path, prediction, solver, steps, options: see :func:`ardiff.solver`; or pass `table`.
            `solver` is by default :func:`ardiff.default_solver` of `steps`.
            `steps` may be `B` integers, one per sample: they run in the same launches, and each
            sample is what it would be alone. `table` may be a
            :class:`~ardiff.tables.ragged.RaggedTable`, or the name of a file that
            :meth:`~ardiff.tables.table.StepTable.save` wrote.
        seed: the key of the noise, any int64: equal seeds give equal samples. None draws a key
            from `generator`, by default torch's own: each call gives other samples, and
            `torch.manual_seed` makes them reproducible.
        condition: handed to the model as it is.
        sample_ids: `B` integers in [0, 2^43), default 0 to B - 1, which address the noise:
            samples do not depend on batch size, order or shard. Equal ids give equal noise.
        uncond, guidance: classifier-free guidance u + w (c - u) with weight `guidance`, a number
            or `[B]`; u is the model at condition `uncond`.
        uncond2, guidance2: three-way guidance u2 + w2 (u - u2) + w (c - u), with weight w2 =
            `guidance2`; u2 is the model at condition `uncond2`.
        temperature: multiplies the step noise (not the initial state), a number or `[B]`. Accept
            steps do not know of it: away from 1 they adjust towards no exact density.
        x0_clamp: positive bound on the data prediction, for solvers without velocity and accept
            steps.
        noise: where the step noise comes from. ``"step"``: its address holds the number of the
            step. ``"path"``: it is the increment, between the levels of the step, of a Brownian
            path that belongs to (seed, sample id, patch), so that samples of one seed are near to
            each other whatever the number of steps; for solvers without velocity and accept steps.
            See docs/noise_path.md.
        patch: index of the patch within an autoregressive sample, in [0, 2^20).
        dtype: of the state; float32, or bfloat16 for solvers without kinetic rows.
        energy_fn: ``energy_fn(x, level, condition) -> [B]``, -log of the density at the level up to
            a constant, for solvers with ``accept="energy"``.
        nonfinite: what happens when samples are NaN or infinite at the end: ``"warn"``, ``"raise"``
            or ``"ignore"``. The message names samples, steps and levels; so does
            `stats.nonfinite`. But for ``"ignore"`` the call waits for the device.
        adapt: ``"sample"``: solvers that accept and reject scale tau for each sample by its own
            decisions in the first half of their stages, towards `target_acceptance`. To adapt once
            for all, see :func:`ardiff.adapted_solver`.
        cuda_graph: True captures the whole loop as a CUDA graph at the first call of its kind, and
            replays it from then on: one launch for all steps. Calls are of a kind if they have the
            same `model_fn` and shapes, and equal ops row by row; values may differ, those of tables
            too, but not those that `model_fn` closes over, and every new lambda is a new model.
            The batch is padded to the next 2^k or 3 2^k, or to the next of the batch sizes given
            here; of `condition` and the others, tensors whose first size is B are padded with it.
            16 captures are kept, with their memory, until :func:`ardiff.clear_graphs`.
        lookahead: calls the model at this many rows of each sample at once, or ``"auto"``, and so
            in fewer rounds one after another: see docs/parallel.md. `model_fn` then gets as many
            states as that makes, in any number, each with its own level and its sample's row of
            what in `condition` is a tensor with a row per sample.
        mode: of the lookahead: ``"speculative"`` (default), samples have exactly the law that they
            have without it; ``"picard"``, they are those without it, within `tolerance`.
        tolerance: of ``"picard"``, see :class:`ardiff.loop.lookahead.Lookahead`; default 1e-4.
        return_stats: also return :class:`SampleStats`.

    Returns:
        Samples of `shape` and `dtype`, or (samples, stats).

    Raises:
        ValueError, TypeError: before any model call for arguments, at the first for its output.
        FloatingPointError: samples that are not finite, with ``nonfinite="raise"``.

    Warns:
        NonfiniteWarning: samples that are not finite.
        AcceptanceWarning: a solver that accepts and rejects took nearly none of the proposals of a
            stage, or nearly all of all stages.

    Example:
        The exact score of data distributed as N(0, 1) on the Ornstein-Uhlenbeck path::

            >>> import ardiff
            >>> x = ardiff.sample(
            ...     lambda x, level, condition: -x, (512, 2), path="ou", prediction="score",
            ...     steps=8, seed=0,
            ... )
            >>> x.shape
            torch.Size([512, 2])
            >>> bool((x.std() - 1).abs() < 0.1)
            True
    """
    if not callable(model_fn) and not hasattr(model_fn, "hoist"):
        raise TypeError(f"model_fn must be callable or have hoist, got {type(model_fn).__name__}")
    if not hasattr(model_fn, "hoist"):
        check_signature("model_fn", model_fn, "model_fn(x, level, condition)")
    if callable(energy_fn):
        check_signature("energy_fn", energy_fn, "energy_fn(x, level, condition)")
    sizes = _check_shape(shape)
    choices = {"path": path, "prediction": prediction, "solver": solver, "steps": steps}
    if adapt is None:
        table = choose_table(table, choices, options, sizes)
    elif cuda_graph is not False:
        raise ValueError(
            "adapt and cuda_graph do not go together: adapt once with ardiff.adapted_solver and "
            "pass its table"
        )
    elif adapt != "sample":
        raise ValueError(f"unknown adapt {adapt!r}; known: sample")
    elif table is not None or solver is None or not isinstance(steps, int):
        raise ValueError("adapt needs a solver by name and one number of steps for all samples")
    else:
        table = make_ladder(choices, options, sizes, target_acceptance)
    if dtype not in (torch.float32, torch.bfloat16) or (
        dtype == torch.bfloat16 and set(table.op) != {"diffusion"}
    ):
        raise ValueError(
            f"dtype must be float32 (bfloat16 too for solvers without velocity and without an "
            f"accept step), got {dtype} for {table.solver}"
        )
    guided = Guidance.of(uncond, guidance, uncond2, guidance2)
    energies = getattr(table, "energy", False)
    if energies != (energy_fn is not None):
        raise ValueError('accept="energy" and energy_fn go together: pass both or neither')
    check_x0_clamp(x0_clamp, table)
    check_mode(nonfinite)
    check_noise_name(noise)
    path_of_noise = path_noise(table, device) if noise == "path" else None
    batch = sizes[0]
    ahead = check_lookahead(lookahead, mode, tolerance)
    if ahead is not None:
        ahead.check(table, dtype)
        if cuda_graph is not False:
            raise ValueError("lookahead and cuda_graph exclude each other: leave one out")
    if cuda_graph is not False:
        check_graph(cuda_graph, batch, device)
    guided = guided.per_sample(batch, device)
    noise_scale = None
    if isinstance(temperature, Tensor) or temperature != 1:
        noise_scale = per_sample("temperature", temperature, batch, device, low=0.0)
    stream = make_stream(sample_ids, batch, patch, device)
    key = make_key(seed, device, generator)

    decisions: list[Decision] = []
    telling = return_stats or nonfinite != "ignore"
    start = time.perf_counter()
    x = initial_state(table, key, stream, math.prod(sizes[1:]), dtype)
    schedule = make_schedule(table, x) if telling else None
    inputs = {
        "condition": condition, **guided.arguments(), "noise_scale": noise_scale,
        "x0_clamp": x0_clamp, "noise": path_of_noise, "key": key, "stream": stream,
    }  # fmt: skip
    if cuda_graph and batch:
        x, decisions, calls, sums = run_captured(
            table, model_fn, x, sizes, buckets=cuda_graph, energy_fn=energy_fn, summed=telling,
            **inputs,
        )  # fmt: skip
    elif ahead is not None:
        counted = CountedModel(model_fn, (-1, *sizes[1:]))
        sums = make_sums(schedule, x) if telling else None
        x, rounds = run_lookahead(table, counted, x, ahead, sums=sums, **inputs)
        calls = rounds.evaluated * guided.outputs / max(batch, 1)
    else:
        counted = CountedModel(model_fn, sizes, table.learned_range)
        energy = energy_fn and shaped_energy(energy_fn, sizes)
        sums = make_sums(schedule, x) if telling else None
        x = run(table, counted, x, energy_fn=energy, decisions=decisions, sums=sums, **inputs)
        calls = counted.calls
    if return_stats and x.is_cuda:
        torch.cuda.synchronize(x.device)
    x = x.view(sizes)
    stats = collect(table, calls, time.perf_counter() - start, decisions)
    if ahead is None:
        stats = dataclasses.replace(stats, rounds=calls // guided.outputs)
    else:
        most = int(rounds.rounds.max(initial=0))
        stats = dataclasses.replace(stats, rounds=most, lookahead=(rounds,))
    if telling and batch:
        levels = schedule.buffers.level
        found = find(first_rows(sums), levels, sample_id_of(stream), patch)
        stats = dataclasses.replace(stats, nonfinite=found)
        report(found, batch, nonfinite)
    fixed = stats if adapt is None else collect(table, 0, 0.0, decisions[table.adapting :])
    warn_of_acceptance(fixed, table.solver)
    return (x, stats) if return_stats else x
