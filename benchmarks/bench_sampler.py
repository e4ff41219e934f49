"""`ARSampler` against the reference DDPM loop on the shipped model, at equal model calls."""

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
CASES = tuple(f"sun-shadow:{solver}/N=64/float32" for solver in SOLVERS)
RIVAL = "reference-ddpm"
TOLERANCE = 1e-3


def parse(case: str) -> tuple[str, str, int]:
    """Model, solver and number of images of `<model>:<solver>/N=<rows>/float32`.

    Raises:
        ValueError: a name of another form.
    """
    try:
        subject, rows, dtype = case.split("/")
        model, solver = subject.split(":")
        n = int(rows.removeprefix("N="))
        if n < 1 or dtype != "float32" or not rows.startswith("N="):
            raise ValueError
    except ValueError:
        raise ValueError(
            f"case {case!r}: expected <model>:<solver>/N=<images>/float32, such as {CASES[0]}"
        ) from None
    return model, solver, n


def equal_calls(model: ardiff.models.ar_model.ARModel, solver: str, steps: int) -> int:
    """Model calls a patch that the solver makes of `steps`; the rival is given as many."""
    return ardiff.ARSampler(model, solver=solver, steps=steps).table.calls


def run(case: str, settings: Settings) -> Iterator[Row]:
    """Correctness (the chosen backend against the reference backend), then images a second."""
    name, solver, n = parse(case)
    model = ardiff.load(name, settings.device)
    sampler = ardiff.ARSampler(model, solver=solver, steps=STEPS)
    few = min(n, 4)
    found = sampler.sample(few, settings.seed).images
    with ardiff_kernels.backend("reference"):
        expected = sampler.sample(few, settings.seed).images
    yield _harness.error_row(SUITE, case, "reference", found, expected, TOLERANCE)
    calls = equal_calls(model, solver, STEPS)
    rivals: dict[str, Callable[[], object]] = {
        RIVAL: lambda: reference_ddpm(model, n, calls, settings.seed)
    }
    ours = {_harness.OURS: lambda: sampler.sample(n, settings.seed)}
    with torch.inference_mode():
        seconds = _harness.interleave({**ours, **settings.pick(rivals)}, settings)
    for rival, values in seconds.items():
        rates = [n / value for value in values]
        yield _harness.spread_row(SUITE, case, rival, "throughput", rates, "images/s")
    for rival in set(seconds) - {_harness.OURS}:
        ratios = [a / b for a, b in zip(seconds[rival], seconds[_harness.OURS], strict=True)]
        yield _harness.spread_row(SUITE, case, rival, "speedup", ratios, "x")
