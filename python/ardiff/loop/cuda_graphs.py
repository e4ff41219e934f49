"""Runs captured as CUDA graphs: the whole loop is one launch, replayed with new inputs.

A capture fixes the ops, the model's kernels and the addresses of all tensors. What differs between
calls lies in buffers that are filled before a replay: initial state, key, streams, conditions,
guidance, temperature, and the tables' coefficients, levels and rows. So a replay repeats noise only
if its key and streams do. What else a model prepares for replays, such as the packed weights of a
diffusion head, it brings up to date before each.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

import ardiff_kernels

from ..batch_invariant import is_batch_invariant
from ..tables.ragged import RaggedTable
from ..tables.table import StepTable
from .capture import rehearsal, watch
from .divergence import make_sums
from .model_calls import CountedModel, shaped_energy
from .run import Decision, make_schedule, run

CAPACITY = 16  # captures kept; the least recently used goes first


class GraphResult(NamedTuple):
    """The final state `[B, d]`, what accept rows decided, the model calls of the loop, and the sums
    of the states `[T, B]` where they were asked for."""

    x: Tensor
    decisions: list[Decision]
    calls: int
    sums: Tensor | None = None


def check_graph(buckets: Any, batch: int, device: torch.device | str) -> None:
    """Raises unless `buckets` is True or batch sizes, one of them `batch` or more, and on CUDA."""
    if torch.device(device).type != "cuda":
        raise ValueError(
            f'cuda_graph needs a CUDA device, got {device}: pass device="cuda", or leave it out'
        )
    if buckets is True:
        return
    if not isinstance(buckets, (list, tuple)) or not all(type(size) is int for size in buckets):
        raise TypeError(f"cuda_graph must be a bool or a list of batch sizes, got {buckets!r}")
    if max(buckets, default=0) < batch or min(buckets) < 1:
        raise ValueError(
            f"cuda_graph must list positive batch sizes that hold {batch} samples, got {buckets}"
        )


def bucket_of(batch: int, buckets: bool | Sequence[int]) -> int:
    """The batch size captured for `batch` samples: the smallest of `buckets` that holds them.

    True stands for all 2^k and 3 2^k, which pad by less than a half.
    """
    if buckets is not True:
        return min(size for size in buckets if size >= batch)
    power = 1 << (batch - 1).bit_length()
    smaller = power // 4 * 3
    return smaller if batch <= smaller else power


def record(function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Captures `function` as a CUDA graph. Returns ``replay()`` and the captured output.

    Each replay writes its result into that same output tensor: clone it to keep it.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # builds kernels and fills the caches of libraries
        function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = function()
    return graph.replay, result


class _Captured:
    """A captured run, the buffers it reads, and the checks of the model's tensors that it reads.

    With `steady` the caller promises that levels that were equal in the rehearsal are equal in
    every replay; their modulations are then computed once.
    """

    def __init__(
        self, function: Callable[[Any], GraphResult], leaves: list, spec: Any, steady: bool
    ) -> None:
        self.buffers = [torch.empty_like(v) if isinstance(v, Tensor) else v for v in leaves]
        self._fill(leaves)
        inputs = tree_unflatten(self.buffers, spec)
        caching = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)  # a cached cast of a weight dies before a replay
        shared = rehearsal() if steady else contextlib.nullcontext()
        try:
            with watch() as self._checks, shared:
                self._replay, self._result = record(lambda: function(inputs))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RuntimeError(
                f"cuda_graph: the loop could not be captured: {error}. A captured model must not "
                "wait for the device nor copy from the host; or leave cuda_graph out"
            ) from error
        finally:
            torch.set_autocast_cache_enabled(caching)

    def current(self) -> bool:
        """Brings the tensors that models prepared up to date; False if the loop must be captured
        anew because a model has replaced one of them."""
        return all(still() for still in self._checks.values())

    def _fill(self, leaves: list) -> None:
        for buffer, leaf in zip(self.buffers, leaves, strict=True):
            if isinstance(leaf, Tensor):
                buffer.copy_(leaf)

    def __call__(self, leaves: list) -> GraphResult:
        self._fill(leaves)
        self._replay()
        return self._result


_captured: OrderedDict[Hashable, _Captured] = OrderedDict()


def clear_graphs() -> None:
    """Frees every captured run and its memory; the next ones are captured anew."""
    _captured.clear()


def run_captured(
    table: StepTable | RaggedTable,
    model_fn: Callable,
    x: Tensor,
    sizes: tuple[int, ...],
    *,
    buckets: bool | Sequence[int],
    key: Tensor,
    draw: int = 0,
    energy_fn: Callable | None = None,
    summed: bool = False,
    **inputs: Any,
) -> GraphResult:
    """:func:`ardiff.loop.run.run` by a replay; the first call of its kind captures.

    A kind is: the model, the shapes of all inputs at the size of the bucket, their values that are
    not tensors, the ops of the table, for a model with ``hoist_guided`` which of its levels are
    equal, autocast, batch invariance and the backend. The last sample is repeated to fill the
    bucket. A model's parameters may change in place; only those of a diffusion head whose weights
    are packed may be replaced, which is captured anew where need be.

    Args:
        table, x, key, energy_fn, inputs: as `run` takes them; in `inputs` every tensor whose first
            size is the batch is one for each sample.
        model_fn: as :func:`ardiff.sample` takes it.
        sizes: the shape in which the model sees x.
        draw: number of the first row's noise draw.
        summed: whether the sums of the states are kept, as `run` writes them.
        buckets: see :func:`bucket_of`.

    Raises:
        TypeError: an input that is neither a tensor nor hashable.
        RuntimeError: a model that cannot be captured.
    """
    batch, bucket = sizes[0], bucket_of(sizes[0], buckets)
    for name in ("guidance", "guidance2", "noise_scale"):
        if inputs.get(name) is not None:
            inputs[name] = inputs[name].expand(batch)
    if isinstance(table, RaggedTable):
        table = RaggedTable(table.tables, _padded(table.index, batch, bucket))
    schedule = make_schedule(table, x.new_empty(bucket, 0))
    if draw:
        buffers = schedule.buffers
        schedule = schedule._replace(buffers=buffers._replace(draw=buffers.draw + draw))
    values, inner = tree_flatten({"x": x, **inputs})
    values = [_padded(v, batch, bucket) if isinstance(v, Tensor) else v for v in values]
    tree = {"inputs": tree_unflatten(values, inner), "key": key, "buffers": schedule.buffers}
    leaves, spec = tree_flatten(tree)
    shape = (bucket, *sizes[1:])
    plan = schedule._replace(buffers=None)
    place = (ardiff_kernels.forced_backend(), _autocast(x.device), is_batch_invariant())
    equal = _equal_levels(table) if hasattr(model_fn, "hoist_guided") else None
    functions = (model_fn, energy_fn, summed)
    kind = (*functions, shape, plan, equal, str(spec), tuple(map(_kind, leaves)), place)
    _require_hashable(kind)

    def function(tree: dict[str, Any]) -> GraphResult:
        decisions: list[Decision] = []
        counted = CountedModel(model_fn, shape, schedule.learned_range)
        energy = energy_fn and shaped_energy(energy_fn, shape)
        sums = make_sums(schedule, tree["inputs"]["x"]) if summed else None
        # outside inference mode, so that the model is called as it is without a graph
        with torch.inference_mode(False), torch.no_grad():
            found = run(
                schedule._replace(buffers=tree["buffers"]), counted, key=tree["key"],
                energy_fn=energy, decisions=decisions, sums=sums, **tree["inputs"],
            )  # fmt: skip
        return GraphResult(found, decisions, counted.calls, sums)

    with torch.inference_mode(), _current(x.device):
        if kind not in _captured or not _captured[kind].current():
            _captured.pop(kind, None)
            _captured[kind] = _Captured(function, leaves, spec, equal is not None)
            if len(_captured) > CAPACITY:
                _captured.popitem(last=False)
        _captured.move_to_end(kind)
        result = _captured[kind](leaves)
    decisions = [
        Decision(k, accepted[:batch].clone(), log_alpha[:batch].clone())
        for k, accepted, log_alpha in result.decisions
    ]
    sums = result.sums[:, :batch].clone() if summed else None
    return GraphResult(result.x[:batch].clone(), decisions, result.calls, sums)


def _equal_levels(table: StepTable | RaggedTable) -> tuple[int, ...] | None:
    """For each row, and for level 0 behind them, the first row at the same level; None for a
    RaggedTable, whose levels differ between samples."""
    if isinstance(table, RaggedTable):
        return None
    first: dict[float, int] = {}
    levels = [*torch.tensor(table.level, dtype=torch.float32).tolist(), 0.0]
    return tuple(first.setdefault(level, row) for row, level in enumerate(levels))


def _padded(leaf: Tensor, batch: int, bucket: int) -> Tensor:
    """`leaf` with its last row repeated up to the bucket, if it has one row per sample."""
    if leaf.dim() == 0 or len(leaf) != batch or batch == bucket:
        return leaf
    return torch.cat([leaf, leaf[-1:].expand(bucket - batch, *leaf.shape[1:])])


def _kind(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.dtype, leaf.device
    return type(leaf), leaf


def _require_hashable(kind: tuple) -> None:
    try:
        hash(kind)
    except TypeError as error:
        raise TypeError(
            f"cuda_graph: model_fn, energy_fn and what a condition holds beside tensors must be "
            f"hashable, to tell one captured loop from another: {error}"
        ) from None


def _current(device: torch.device) -> contextlib.AbstractContextManager:
    """Makes the samples' GPU the current one: streams and captures are those of the current GPU."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _autocast(device: torch.device) -> torch.dtype | None:
    kind = device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
