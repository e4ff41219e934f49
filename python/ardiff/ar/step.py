"""One autoregressive step of some requests: contexts from the encoder, patches from the solver."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..guide import Guidance
from ..heads.base import Head
from ..heads.edm import EDMHead
from ..heads.fused import FusedHead, fused
from ..loop.divergence import first_rows, make_sums
from ..loop.lookahead import Lookahead, Rounds, run_lookahead
from ..loop.path_noise import PathNoise, check_noise_name, path_noise
from ..loop.run import Decision, Runnable, make_schedule, run
from ..noise import Spans, initial_state, make_key, stream_of
from ..solvers import solver as make_table
from ..solvers import solver_options
from ..tables.plan import Schedule
from ..tables.ragged import RaggedTable
from ..tables.table import StepTable
from .function_model import OwnModel
from .kv_cache import KVCache
from .patch_model import Sampled
from .requests import Request

_Prepared = tuple[Runnable, Schedule, PathNoise | None]
_SCHEDULES = 64  # kept; the least recently used goes first


def contexts(model: Sampled, cache: KVCache, running: list[Request]) -> list[Tensor]:
    """Takes in the newest tokens of all streams, in one call of the encoder.

    Returns:
        One to three tensors, float32 `[B, width]`: the contexts of the B patches to be made,
        request after request, then those that guidance compares with. All requests of a batch need
        the same number of contexts, so one with fewer repeats its last context: the terms that this
        adds to guidance, such as w (u - u), are 0, and the patch is the same to the bit as alone.
    """
    device, block = model.start.device, model.block
    blank = torch.zeros(block, model.patch_dim, dtype=torch.float32, device=device)
    targets = [request.target(block) for request in running]
    tokens = model.tokens(
        torch.stack([blank if request.last is None else request.last for request in running]),
        torch.tensor([request.last is None for request in running], device=device),
        torch.tensor([t + t[-1:] * (block - len(t)) for t in targets], device=device),
    )
    owner = [i for i, request in enumerate(running) for _ in request.rows]
    hidden = model.encoder.append(
        tokens[owner],
        cache,
        [row for request in running for row in request.rows],
        position=torch.tensor([at for request in running for at in request.positions(block)]),
        causal=block == 1,
    ).flatten(0, 1)
    first = [owner.index(i) for i in range(len(running))]
    slots = [(i, j) for i, target in enumerate(targets) for j in range(len(target))]
    found = []
    for way in range(max(len(request.sources) for request in running)):
        sources = [running[i].source(way) for i, _ in slots]
        fixed = [n for n, source in enumerate(sources) if isinstance(source, Tensor)]
        streams = [0 if isinstance(source, Tensor) else source for source in sources]
        at = [(first[i] + s) * block + j for (i, j), s in zip(slots, streams, strict=True)]
        context = hidden[at]
        if fixed:
            context[fixed] = torch.stack([sources[n] for n in fixed]).to(context)
        found.append(context.float())
    return found


class PatchSolver:
    """Draws the next patches of requests, each with its own steps, guidance and temperature.

    Args:
        model: whose denoiser is called; forward hooks that its head has at a call are called.
        solver, options: a name of `ardiff.solvers` and its options; or a table for all patches.
        weights: see `ardiff.heads.fused.FusedHead`.
        noise: ``step`` or ``path``, see `ardiff.sample`.
        lookahead: how far each patch's run looks ahead, if it does.
    """

    def __init__(
        self,
        model: Sampled | OwnModel,
        solver: str | StepTable,
        options: dict,
        weights: str = "float32",
        noise: str = "step",
        lookahead: Lookahead | None = None,
    ) -> None:
        check_noise_name(noise)
        self._lookahead = lookahead
        self._by_path = noise == "path"
        self.model, self._weights = model, weights
        own = isinstance(model, OwnModel)
        self._plain = own and not isinstance(model.denoiser, (Head, EDMHead, FusedHead))
        self._head()  # refuses unknown weights at once
        if self._plain and weights != "float32":
            raise ValueError(
                f"weights={weights!r} packs a head of ardiff.heads, but denoise is a "
                f"{type(model.denoiser).__name__} and runs as it is: leave weights at float32"
            )
        self._table = solver if isinstance(solver, StepTable) else None
        if self._table is not None:
            self._table.check_model(model.path, model.prediction)
        else:
            own = {"name": solver, "path": model.path, "prediction": model.prediction}
            grid = dict(model.grid)
            if options.get("grid", grid.get("grid")) != grid.get("grid"):
                grid.pop("rho", None)  # it is that of the model's own grid
            self._choices = {**own, **grid, **options}
            if "dim" in solver_options(solver):
                self._choices.setdefault("dim", model.patch_dim)
        self._schedules: OrderedDict[tuple, _Prepared] = OrderedDict()

    def _head(self) -> Any:
        """What the loop calls: a head of ours fused, a caller's own function as it is."""
        head = self.model.denoiser
        return head if self._plain else fused(head, self._weights)

    def table(self, steps: int) -> StepTable:
        """The table of `steps` steps, of which `ardiff.solvers` keeps the last ones made.

        Raises:
            ValueError: a table that cannot run here.
        """
        table = self._table
        if table is None:
            table = make_table(steps=steps, **self._choices)
        elif steps != table.calls:
            raise ValueError(
                f"the table makes {table.calls} model calls per patch: leave steps out, got {steps}"
            )
        if table.energy:
            raise ValueError(
                'accept="energy" needs a density, which a model of this kind lacks; use '
                '"trapezoid" or "simpson"'
            )
        if self._by_path:
            path_noise(table, "cpu")
        if self._lookahead is not None:
            self._lookahead.check(table)
        return table

    def draw(
        self,
        running: list[Request],
        contexts: Sequence[Any],
        decisions: list[Decision] | None = None,
        watched: list[tuple[Tensor, Tensor]] | None = None,
        rounds: list[Rounds] | None = None,
    ) -> Tensor:
        """The next patches `[B, d]` of requests in order of seed, from their `contexts`.

        Args:
            running: requests, one or more.
            contexts: of their next patches, and those that guidance compares with.
            decisions: as of :func:`ardiff.loop.run.run`.
            watched: a list to which is appended, int64 `[B]`, the first row after which each patch
                was not finite (-1 for none), and the levels of the rows.
            rounds: a list to which is appended what the rounds of a run with a lookahead did.
        """
        context, *others = contexts
        model, device = self.model, self.model.start.device
        slots = [
            (request, len(request.made) + j, place)
            for request in running
            for j, place in enumerate(request.target(model.block))
        ]
        streams = [stream_of(request.sample_id, place) for request, _, place in slots]
        stream = torch.tensor(streams, dtype=torch.int64, device=device)
        weights = tuple(
            torch.tensor(
                [request.weight(way, index) for request, index, _ in slots],
                dtype=torch.float32,
                device=device,
            )
            for way in range(1, 1 + len(others))
        )
        modifiers = Guidance(tuple(others), weights).arguments()
        if any(request.temperature != 1 for request in running):
            scale = [request.temperature for request, _, _ in slots]
            modifiers["noise_scale"] = torch.tensor(scale, dtype=torch.float32, device=device)
        keys = _keys([request.seed for request, _, _ in slots], device)
        steps = [request.steps[index] for request, index, _ in slots]
        table, schedule, noise = self._schedule(steps, stream)
        x = initial_state(table, keys, stream, model.patch_dim)
        sums = None if watched is None else make_sums(schedule, x)
        given = {
            "key": keys, "stream": stream, "condition": context, "sums": sums, "noise": noise,
            **modifiers,
        }  # fmt: skip
        if self._lookahead is None:
            x = run(schedule, self._head(), x, decisions=decisions, **given)
        else:
            x, made = run_lookahead(table, self._head(), x, self._lookahead, **given)
            if rounds is not None:
                rounds.append(made)
        if watched is not None:
            watched.append((first_rows(sums), schedule.buffers.level))
        return model.clip(x, torch.tensor([place for _, _, place in slots], device=device))

    def _schedule(self, steps: list[int], like: Tensor) -> _Prepared:
        """The table of each patch, what the loop does for them, and its path."""
        kinds, kept = sorted(set(steps)), self._schedules
        place = (like.device, *(steps if len(kinds) > 1 else kinds))
        if place not in kept:
            tables = [self.table(n) for n in kinds]
            table = tables[0]
            if len(kinds) > 1:
                table = RaggedTable(tables, [kinds.index(n) for n in steps])
            noise = path_noise(table, like.device) if self._by_path else None
            kept[place] = (table, make_schedule(table, like), noise)
            if len(kept) > _SCHEDULES:
                kept.popitem(last=False)
        kept.move_to_end(place)
        return kept[place]


def _keys(seeds: list[int], device: torch.device) -> Tensor | Spans:
    """The key of all; or the runs of equal seeds and their keys."""
    spans, first = [], 0
    for seed, same in groupby(seeds):
        last = first + len(list(same))
        spans.append((slice(first, last), make_key(seed, device)))
        first = last
    return spans if len(spans) > 1 else spans[0][1]
