"""Tokens of diffusion heads: everything hoisted and one op per step, against the plain head's loop.

A case is `<model>/N=<tokens>/<dtype>`: the sizes and solver of a published model, random weights,
and the dtype of our blocks' weights. Beyond `MOST` tokens times steps the solver takes fewer steps.
Rivals call the head in that dtype at each step, eagerly or compiled (`_rivals.py`), on the same
solver ops. On a GPU `ardiff-persistent` is `head_loop` and `ardiff-triton-graph` the loop over
rows, both as CUDA graphs, and `graphed-eager` is the whole loop of `eager` as one. Metrics of runs
with guidance end in `-guided`.

    python -m ardiff bench head --case mar-b/N=1/float32
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ardiff.heads.base import Head
from ardiff.heads.fused import FusedHead
from ardiff.heads.packing import WEIGHTS, pack
from ardiff.heads.token import denoise_token
from ardiff.loop.run import run as run_table
from ardiff.noise import make_stream
from ardiff.tables.table import StepTable

from . import _harness, _head_gpu, _rivals
from ._harness import Row, Settings
from ._heads import MODELS, PlainLoop
from ._rivals import Rival

SUITE = "head"
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
CASES = tuple(
    f"{model}/N={n}/{dtype}"
    for model in MODELS
    if model != "tiny"
    for n in ROWS[:9:2]
    for dtype in WEIGHTS
)
GUIDANCE, MOST = 3.0, 6400
_READ, _STAGED = "read", "rtk-uld"
# Relative RMS errors: of one evaluation against float64, of a whole run against the plain loop.
ERRORS = {"float32": 1e-5, "int8": 0.03}
RUN_ERROR = 1e-4


def parse(case: str) -> tuple[str, int, str]:
    """Model, tokens and dtype of a case.

    Raises:
        ValueError: a name of another form.
    """
    parts = case.split("/")
    if len(parts) == 3 and parts[0] in MODELS and parts[2] in WEIGHTS:
        n = parts[1].removeprefix("N=")
        if n.isdecimal() and int(n) > 0:
            return parts[0], int(n), parts[2]
    raise ValueError(
        f"case {case!r}: expected <model>/N=<tokens>/<dtype> with a model of "
        f"{', '.join(m for m in MODELS if m != 'tiny')} and a dtype of {', '.join(WEIGHTS)}"
    )


@dataclass
class Token:
    """The inputs of a case and ways to draw from them."""

    head: Head
    table: StepTable
    x: Tensor
    context: Tensor
    uncond: Tensor
    weights: str

    def conditions(self, guided: bool) -> list[Tensor]:
        return [self.context, self.uncond] if guided else [self.context]

    def _guidance(self, guided: bool) -> dict:
        weight = self.context.new_tensor([GUIDANCE])
        return {"uncond": self.uncond, "guidance": weight} if guided else {}

    def ours(self, guided: bool, table: StepTable | None = None, **options) -> Tensor:
        return denoise_token(
            self.head, self.context, table or self.table, _key(self.x), 0, self._streams(),
            weights=self.weights, **{"start": self.x, **options}, **self._guidance(guided),
        )  # fmt: skip

    def forms(self, guided: bool) -> _head_gpu.Forms:
        """The token as CUDA graphs hold it."""
        guidance = self.context.new_tensor([GUIDANCE])
        conditions = self.conditions(guided)
        return _head_gpu.Forms(self.head, self.table, self.x, conditions, guidance, self.weights)

    def plain(self, guided: bool, rival: Rival) -> Tensor:
        return run_table(
            self.table, PlainLoop(self.head, rival), self.x, key=_key(self.x),
            stream=self._streams(), condition=self.context, **self._guidance(guided),
        )  # fmt: skip

    def _streams(self) -> Tensor:
        return make_stream(None, len(self.x), 0, self.x.device)

    def step(self, guided: bool = False) -> Callable[[], list[Tensor]]:
        """One evaluation in the middle of the table, its modulations known."""
        levels, middle = self._middle()
        model = FusedHead(self.head, self.weights)
        step = model.hoist_guided(levels, self.conditions(guided))
        return lambda: list(step(middle, self.x))

    def plain_step(self, rival: Rival) -> Tensor:
        """The same by a rival."""
        levels, middle = self._middle()
        level, *end = self.head.time_arguments(levels)[middle].split(1)
        call, dtype = rival
        return call(self.x.to(dtype), level, self.context.to(dtype), *end)

    def in_dtype(self, dtype: torch.dtype) -> Rival:
        """The plain head."""
        head = self.head if dtype == torch.float32 else copy.deepcopy(self.head).to(dtype)
        return Rival(head, dtype)

    def _middle(self) -> tuple[Tensor, int]:
        return self.table.to(self.x.device).level, len(self.table) // 2


def _key(like: Tensor) -> Tensor:
    return torch.zeros(1, dtype=torch.int64, device=like.device)


def token(case: str, settings: Settings) -> Token:
    """Random weights and inputs of a case."""
    name, n, weights = parse(case)
    shape = MODELS[name]
    head, table = shape.head(settings.seed).to(settings.device), shape.own_table(max(4, MOST // n))
    generator = torch.Generator().manual_seed(settings.seed)
    context, uncond = torch.randn(2, n, shape.context, generator=generator).to(settings.device)
    x = torch.randn(n, shape.dim, generator=generator).to(settings.device) * table.init_scale
    return Token(head, table, x, context, uncond[:1].expand(n, -1), weights)


def correctness(case: str, inputs: Token, rivals: dict[str, Rival]) -> Iterator[Row]:
    """One evaluation of ours and of the rivals against float64; for float32 a whole run against the
    plain loop's too."""
    exact = inputs.plain_step(inputs.in_dtype(torch.float64))
    found = _harness.relative_error(inputs.step()()[0], exact)
    allowed = ERRORS.get(inputs.weights)
    if allowed is None:
        theirs = inputs.plain_step(inputs.in_dtype(torch.bfloat16))
        allowed = 2 * _harness.relative_error(theirs, exact)
    yield _harness.error_row(SUITE, case, _harness.OURS, found, torch.zeros(()), allowed)
    yield Row(SUITE, case, _harness.OURS, "error", float(found))
    yield from rival_errors(SUITE, case, inputs, rivals)
    for guided in (False, True) if inputs.weights == "float32" else ():
        plain = inputs.plain(guided, inputs.in_dtype(torch.float32))
        excess = _harness.relative_error(inputs.ours(guided), plain)
        yield _harness.error_row(SUITE, case, _harness.OURS, excess, torch.zeros(()), RUN_ERROR)


def rival_errors(suite: str, case: str, inputs: Token, rivals: dict[str, Rival]) -> Iterator[Row]:
    """Correctness of an evaluation by each rival."""
    steps = {name: partial(inputs.plain_step, rival) for name, rival in rivals.items()}
    exact = inputs.plain_step(inputs.in_dtype(torch.float64))
    yield from _rivals.correctness(suite, case, steps, exact)


def run(case: str, settings: Settings) -> Iterator[Row]:
    """Correctness, then calls a second and speedups with and without guidance, what batch
    invariance costs, the share of the read bandwidth, and RTK-ULD against DDPM per call."""
    inputs = token(case, settings)
    with torch.inference_mode():
        rivals = _rivals.made(inputs.head, inputs.weights, settings)
        yield from correctness(case, inputs, rivals)
        for guided in (False, True):
            yield from _against(case, inputs, guided, rivals, settings)
            if settings.device == "cuda":
                suffix = "-guided" if guided else ""
                forms = inputs.forms(guided)
                yield from _head_gpu.measure(SUITE, case, forms, rivals, settings, suffix)
        yield from _bandwidth(case, inputs, settings)
        if inputs.table.solver == "ddpm":
            yield from _staged(case, inputs, settings)


def _against(
    case: str, inputs: Token, guided: bool, rivals: dict[str, Rival], settings: Settings
) -> Iterator[Row]:
    suffix = "-guided" if guided else ""
    competitors = {_harness.OURS: partial(inputs.ours, guided)}
    competitors |= {name: partial(inputs.plain, guided, rival) for name, rival in rivals.items()}
    invariant = f"{_harness.OURS}-batch-invariant"
    competitors[invariant] = partial(inputs.ours, guided, batch_invariant=True)
    seconds = _harness.interleave(competitors, settings)
    for name, values in seconds.items():
        rates = [inputs.table.calls / value for value in values]
        yield _harness.spread_row(SUITE, case, name, f"throughput{suffix}", rates, "calls/s")
    ours = seconds[_harness.OURS]
    for name in rivals:
        yield _harness.speedup_row(SUITE, case, name, seconds[name], ours, f"speedup{suffix}")
    cost = [a / b for a, b in zip(seconds[invariant], ours, strict=True)]
    metric = f"cost-of-batch-invariance{suffix}"
    yield _harness.spread_row(SUITE, case, _harness.OURS, metric, cost, "x")


def _bandwidth(case: str, inputs: Token, settings: Settings) -> Iterator[Row]:
    """Weights that one evaluation reads, over its time, and of a plain read of as many bytes."""
    packed = pack(inputs.head, inputs.weights)
    size = sum(t.numel() * t.element_size() for t in packed.weights)
    # A plain read of a buffer beyond every cache.
    buffer = torch.ones(1 << 26, device=inputs.x.device)
    seconds = _harness.interleave({_harness.OURS: inputs.step(), _READ: buffer.sum}, settings)
    rates = {_harness.OURS: size, _READ: 4 * buffer.numel()}
    rates = {name: [n / s / 1e9 for s in seconds[name]] for name, n in rates.items()}
    for name, values in rates.items():
        yield _harness.spread_row(SUITE, case, name, "bandwidth", values, "GB/s")
    share = [a / b for a, b in zip(rates[_harness.OURS], rates[_READ], strict=True)]
    yield _harness.spread_row(SUITE, case, _harness.OURS, "share_of_read_bandwidth", share, "1")


def _staged(case: str, inputs: Token, settings: Settings) -> Iterator[Row]:
    """A call of RTK-ULD, whose stages of 20 inner steps share their modulations, and of DDPM."""
    shape = MODELS[parse(case)[0]]
    stages, inner = max(2, inputs.table.calls // 20), min(20, inputs.table.calls // 4)
    steps = stages * (inner + 1) + 1
    staged = shape.table(_STAGED, steps, stages=stages, inner=inner)
    tables = {"ddpm": inputs.table, _STAGED: staged}
    for guided in (False, True):
        runs = {n: partial(inputs.ours, guided, table) for n, table in tables.items()}
        seconds = _harness.interleave(runs, settings)
        calls = {name: [s / tables[name].calls for s in seconds[name]] for name in tables}
        gain = [a / b for a, b in zip(calls["ddpm"], calls[_STAGED], strict=True)]
        metric = f"{_STAGED}-gain-per-call{'-guided' if guided else ''}"
        yield _harness.spread_row(SUITE, case, _harness.OURS, metric, gain, "x")
