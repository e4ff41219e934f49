"""The DDPM loop of MAR's diffusion loss, replaced by `ardiff.integrations.mar.accelerate`.

A case is `<model>/N=<tokens>/<dtype>`: the sizes of a published model, random weights, 100 steps,
and the dtype of our blocks' weights. Rivals are the plain loop of `reference_mar` at the same
temperature and guidance, a tensor, with its head in that dtype, eager or compiled (`_rivals.py`).
Metrics with guidance, whose loop has 2N rows, end in `-guided`.

    python -m ardiff bench mar --case mar-b/N=4/float32
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from ardiff.heads.packing import WEIGHTS
from ardiff.integrations import mar

from . import _harness, _rivals
from ._harness import Row, Settings
from ._heads import MODELS
from ._rivals import Rival
from .reference_mar import DiffLoss, randomise

SUITE = "mar"
CASES = tuple(
    f"{model}/N={n}/{dtype}"
    for model in ("mar-b", "mar-l", "mar-h")
    for n in (1, 4, 16)
    for dtype in ("float32", "bfloat16")
)
STEPS, TEMPERATURE, GUIDANCE = 100, 0.95, 2.9
# Largest error over the largest sample. Float32: both loops round differently; a bfloat16 weight
# keeps 8 bits, and epsilon is multiplied by 350 in the first step.
ERRORS = {"float32": 1e-4, "bfloat16": 0.05, "int8": 0.1}
# Of a rival's evaluation, relative RMS: these weights put a constant of 30 beside the data, which
# costs a bfloat16 activation, as ours are not, five bits.
RIVAL_ERRORS = {"float32": 1e-5, "bfloat16": 0.2, "int8": 0.2}


def parse(case: str) -> tuple[str, int, str]:
    """Model, tokens and dtype of a case.

    Raises:
        ValueError: a name of another form.
    """
    parts = case.split("/")
    if len(parts) == 3 and parts[0] in ("tiny", "mar-b", "mar-l", "mar-h") and parts[2] in WEIGHTS:
        n = parts[1].removeprefix("N=")
        if n.isdecimal() and int(n) > 0:
            return parts[0], int(n), parts[2]
    raise ValueError(
        f"case {case!r}: expected <model>/N=<tokens>/<dtype> with a model of mar-b, mar-l, mar-h "
        f"and a dtype of {', '.join(WEIGHTS)}"
    )


def run(case: str, settings: Settings) -> Iterator[Row]:
    """The same samples on the same noise, then the milliseconds of a call and the speedups."""
    name, n, dtype = parse(case)
    shape = MODELS[name]
    loss = DiffLoss(shape.dim, shape.context, shape.depth, shape.width, STEPS)
    randomise(loss, settings.seed).to(settings.device)
    with torch.no_grad():
        rivals = _rivals.made(loss.net, dtype, settings)
    loops = {name: in_dtype(loss, rival) for name, rival in rivals.items()}
    plain = loss.sample
    handle = mar.accelerate(loss, weights=dtype)
    generator = torch.Generator().manual_seed(settings.seed)
    z = torch.randn(2 * n, shape.context, generator=generator).to(settings.device)
    noise = torch.randn(STEPS + 1, 2 * n, shape.dim, generator=generator).to(settings.device)
    weight = torch.tensor(GUIDANCE, device=settings.device)
    calls = {"": (z[:n], 1.0), "-guided": (z, weight)}
    for rows, cfg in calls.values():
        given = noise[:, : len(rows)]
        expected = plain(rows, TEMPERATURE, cfg, given)[:n]
        found = handle.sample(rows, TEMPERATURE, cfg, noise=given)[:n]
        bound = ERRORS[dtype] * expected.abs().max()
        yield _harness.error_row(SUITE, case, _harness.OURS, found, expected, bound)
        yield Row(SUITE, case, _harness.OURS, "error", float((found - expected).abs().max()))
    t = torch.full((n,), 500, device=settings.device)

    def evaluate(rival: Rival) -> Tensor:
        return rival.call(noise[0, :n].to(rival.dtype), t, z[:n].to(rival.dtype))

    with torch.no_grad():
        exact = loss.net(noise[0, :n], t, z[:n])
        found = {name: partial(evaluate, rival) for name, rival in rivals.items()}
        yield from _rivals.correctness(SUITE, case, found, exact, RIVAL_ERRORS)
    for suffix, (rows, cfg) in calls.items():
        yield from _against(case, suffix, loops, handle, rows, cfg, settings)


def in_dtype(loss: DiffLoss, rival: Rival) -> Callable[..., Tensor]:
    """The plain loop in float32 around its head in a dtype."""
    other = copy.copy(loss)

    def head(x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        return rival.call(x.to(rival.dtype), t, z).float()

    other.__dict__["net"] = head  # found before the module's children
    return lambda z, *args: other.sample(z.to(rival.dtype), *args)


def _against(
    case: str,
    suffix: str,
    loops: dict[str, Callable[..., Tensor]],
    handle: mar.MARSampler,
    z: Tensor,
    cfg: float | Tensor,
    settings: Settings,
) -> Iterator[Row]:
    runs = {_harness.OURS: partial(handle.sample, z, TEMPERATURE, cfg)}
    runs |= {name: partial(loop, z, TEMPERATURE, cfg) for name, loop in loops.items()}
    seconds = _harness.interleave(runs, settings)
    for name, values in seconds.items():
        milli = [value * 1e3 for value in values]
        yield _harness.spread_row(SUITE, case, name, f"time{suffix}", milli, "ms")
    for name in loops:
        yield _harness.speedup_row(
            SUITE, case, name, seconds[name], seconds[_harness.OURS], f"speedup{suffix}"
        )
