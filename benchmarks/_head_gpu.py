"""What only a GPU has: a token as a CUDA graph of Triton kernels, as one persistent kernel and as a
CUDA graph of the plain head's loop, with the time of a step and the launches of a token."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import DeviceType

import ardiff_kernels
from ardiff.heads import token
from ardiff.heads.base import Head
from ardiff.heads.fused import FusedHead
from ardiff.loop import cuda_graphs as graphs
from ardiff.loop.run import make_schedule
from ardiff.loop.run import run as run_table
from ardiff.noise import make_stream
from ardiff.tables.table import StepTable

from . import _harness
from ._harness import Row, Settings
from ._heads import PlainLoop
from ._rivals import Rival

PERSISTENT, GRAPH = "ardiff-persistent", "ardiff-triton-graph"


class Forms:
    """Ways to draw one token, as functions that a CUDA graph can hold.

    Args:
        head, table, x: what is run, from which state.
        conditions: contexts, a condition a way.
        guidance: float32 `[1]`, used where there are two conditions.
        weights: their dtype, as of `FusedHead`.
    """

    def __init__(
        self,
        head: Head,
        table: StepTable,
        x: Tensor,
        conditions: Sequence[Tensor],
        guidance: Tensor,
        weights: str,
    ) -> None:
        self.head, self.model = head, FusedHead(head, weights)
        self.conditions = list(conditions)
        self.table, self.x = table, x
        self.guidance = {"guidance": guidance} if len(conditions) > 1 else {}
        self.place = {
            "key": torch.zeros(1, dtype=torch.int64, device=x.device),
            "stream": make_stream(None, len(x), 0, x.device),
        }

    def persistent(self) -> Tensor:
        """All steps by `head_loop`."""
        schedule = make_schedule(self.table, self.x)
        sets = self.model.modulations(schedule.buffers.level, self.conditions)
        return token.run_token(schedule, self.table.op, sets, self.x, **self.place, **self.guidance)

    def rows(self) -> Tensor:
        """A `head_step` and a step op per row."""
        return self._run(self.model)

    def plain(self, rival: Rival) -> Tensor:
        """The plain head and a step op per row."""
        return self._run(PlainLoop(self.head, rival))

    def _run(self, model: Any) -> Tensor:
        names = ("condition", "uncond")
        conditions = dict(zip(names, self.conditions, strict=False))
        return run_table(self.table, model, self.x, **self.place, **conditions, **self.guidance)


class Launches(NamedTuple):
    """Kernels that ran on the GPU, and graphs that the host launched."""

    kernels: int
    graphs: int


def counted(events: Iterable[Any]) -> Launches:
    """Launches among a profiler's events: a kernel is what the GPU did, but no copy nor fill. The
    host's calls and the profiler's own work are events too."""
    events = list(events)
    on_gpu = [event.name for event in events if event.device_type == DeviceType.CUDA]
    return Launches(
        sum(not name.startswith(("Memcpy", "Memset")) for name in on_gpu),
        sum(event.name.startswith("cudaGraphLaunch") for event in events),
    )


def launches(function: Callable[[], object]) -> Launches:
    """Those of a call."""
    function()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        function()
        torch.cuda.synchronize()
    return counted(profile.events())


def measure(
    suite: str,
    case: str,
    forms: Forms,
    rivals: dict[str, Rival],
    settings: Settings,
    suffix: str = "",
    record: Callable = graphs.record,
    count: Callable[[Callable], Launches] = launches,
) -> Iterator[Row]:
    """Both forms in CUDA graphs against the plain loops of the rivals, of which those that are not
    compiled are graphs too: correctness, microseconds a step, speedups of the persistent kernel,
    kernels of a token and launches of graphs. A form that cannot be had here has no rows.

    A form is compared with the loop over rows on its own backend: with bfloat16 weights Triton's
    products round their rows, CUDA's do not.
    """
    found, wanted, kernels = {}, {}, {}
    for name, backend, function in (
        (GRAPH, "triton", forms.rows),
        (PERSISTENT, "cuda", forms.persistent),
    ):
        if _unusable(backend, forms.x):
            continue
        with ardiff_kernels.backend(backend), torch.inference_mode():
            kernels[name] = count(function).kernels
            wanted[name] = forms.rows()
            found[name] = record(function)
    plain = {name: partial(forms.plain, rival) for name, rival in rivals.items()}
    for rival, function in plain.items():
        if "compile" not in rival:
            with torch.inference_mode():
                name = f"graphed-{rival}"
                wanted[name], found[name] = function(), record(function)
    for name, (replay, result) in found.items():
        replay()
        expected = wanted[name]
        error = (result.double() - expected.double()).square().mean().sqrt()
        error = error / expected.double().square().mean().sqrt()
        yield _harness.error_row(suite, case, name, error, torch.zeros(()), 1e-4)
    kernels |= {name: count(function).kernels for name, function in plain.items()}
    for name, number in kernels.items():
        yield Row(suite, case, name, f"launches_of_a_token{suffix}", number)
    replays = {name: replay for name, (replay, _) in found.items()}
    for name, replay in replays.items():
        yield Row(suite, case, name, f"graph_launches_of_a_token{suffix}", count(replay).graphs)
    seconds = _harness.interleave({**replays, **plain}, settings)
    for name, values in seconds.items():
        steps = [value / len(forms.table) * 1e6 for value in values]
        yield _harness.spread_row(suite, case, name, f"time_of_a_step{suffix}", steps, "us")
    if PERSISTENT in replays:
        for name in (name for name in seconds if name not in (PERSISTENT, GRAPH)):
            metric = f"speedup-persistent{suffix}"
            yield _harness.speedup_row(
                suite, case, name, seconds[name], seconds[PERSISTENT], metric
            )


def _unusable(backend: str, x: Tensor) -> bool:
    from ardiff_kernels.dispatch import backends

    kind = "cuda" if x.is_cuda else "cpu"
    op = "head_loop_" if backend == "cuda" else "head_step"
    return bool(backends.unusable(op, backend, kind))
