"""`ARSampler` against the reference DDPM loop on the shipped model, at equal model calls.

A case runs each solver of :data:`SOLVERS` against a loop that makes as many calls. `throughput` and
`speedup` are those of the first solver; another one's name follows: `speedup-ddpm`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

import ardiff
import ardiff_kernels

from . import _harness
from ._harness import Row, Settings
from .reference_ddpm import reference_ddpm

SUITE = "sampler"
SOLVERS = ("rtk-uld", "ddpm")
STEPS = 48
CASES = ("sun-shadow/N=64/float32",)
RIVAL = "reference-ddpm"
TOLERANCE = 1e-3


def parse(case: str) -> tuple[str, int]:
    """Model and number of images of `<model>/N=<rows>/float32`.

    Raises:
        ValueError: a name of another form.
    """
    parts = case.split("/")
    if len(parts) == 3 and parts[2] == "float32" and parts[1].startswith("N="):
        model, n = parts[0], parts[1].removeprefix("N=")
        if n.isdecimal() and int(n) > 0:
            return model, int(n)
    raise ValueError(f"case {case!r}: expected <model>/N=<images>/float32, such as {CASES[0]}")


def run(case: str, settings: Settings) -> Iterator[Row]:
    """Correctness (the chosen backend against the reference backend), then images a second."""
    name, n = parse(case)
    model = ardiff.load(name, settings.device)
    samplers = {solver: ardiff.ARSampler(model, solver=solver, steps=STEPS) for solver in SOLVERS}
    few = min(n, 4)
    found = [s.sample(few, settings.seed).images for s in samplers.values()]
    with ardiff_kernels.backend("reference"):
        expected = [s.sample(few, settings.seed).images for s in samplers.values()]
    yield _harness.error_row(
        SUITE, case, "reference", torch.cat(found), torch.cat(expected), TOLERANCE
    )
    for solver, sampler in samplers.items():
        suffix = "" if solver == SOLVERS[0] else f"-{solver}"
        yield from _against_loop(case, sampler, n, suffix, settings)


def _against_loop(
    case: str, sampler: ardiff.ARSampler, n: int, suffix: str, settings: Settings
) -> Iterator[Row]:
    calls = sampler.table.calls
    rivals: dict[str, Callable[[], object]] = {
        RIVAL: lambda: reference_ddpm(sampler.model, n, calls, settings.seed)
    }
    ours = {_harness.OURS: lambda: sampler.sample(n, settings.seed)}
    picked = settings.pick(rivals)
    with torch.inference_mode():
        seconds = _harness.interleave({**ours, **picked}, settings)
    for name, values in seconds.items():
        rates = [n / value for value in values]
        yield _harness.spread_row(SUITE, case, name, f"throughput{suffix}", rates, "images/s")
    for name in picked:
        yield _harness.speedup_row(
            SUITE, case, name, seconds[name], seconds[_harness.OURS], f"speedup{suffix}"
        )
