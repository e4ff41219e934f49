"""Tokens of a diffusion head in rounds, `denoise_token(..., lookahead=L)`, against row by row and
against the rivals of the `head` suite.

A case is `<model>/N=<tokens>/<dtype>`, as of the `head` suite: 100 rows of DDPM for MAR's heads,
random weights. `ardiff` draws the token row by row, on a GPU `ardiff-graph` does so in a CUDA
graph; `ardiff-lookahead-L` draws it in rounds of L rows. How many rows a round keeps depends on the
head: a trained one has another gain than random weights.

    python -m ardiff bench lookahead --case mar-b/N=1/float32
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from . import _harness, _rivals
from ._harness import OURS, Row, Settings
from .bench_head import RUN_ERROR, rival_errors, token

SUITE = "lookahead"
CASES = tuple(f"mar-b/N={n}/{dtype}" for dtype in ("float32", "bfloat16") for n in (1, 16))
LOOKAHEADS = (8, 16)
_GRAPH = f"{OURS}-graph"


def run(case: str, settings: Settings) -> Iterator[Row]:
    """Rounds within a tolerance of 0 against row by row; then milliseconds of a token, and the gain
    of rounds that keep rows by law."""
    inputs = token(case, settings)
    names = {rows: f"{OURS}-lookahead-{rows}" for rows in LOOKAHEADS}
    with torch.inference_mode():
        expected = inputs.ours(False, batch_invariant=True).double()
        scale = expected.square().mean().sqrt()
        for rows, name in names.items():
            exact = {"mode": "picard", "tolerance": 0.0, "batch_invariant": True}
            found = inputs.ours(False, lookahead=rows, **exact).double()
            error = (found - expected).square().mean().sqrt() / scale
            yield _harness.error_row(SUITE, case, name, error, torch.zeros(()), RUN_ERROR)
        rivals = _rivals.made(inputs.head, inputs.weights, settings)
        yield from rival_errors(SUITE, case, inputs, rivals)
        competitors = {OURS: partial(inputs.ours, False)}
        if settings.device == "cuda":
            competitors[_GRAPH] = partial(inputs.ours, False, cuda_graph=True)
        competitors |= {n: partial(inputs.plain, False, rival) for n, rival in rivals.items()}
        others = list(competitors)
        for rows, name in names.items():
            competitors[name] = partial(inputs.ours, False, lookahead=rows)
        seconds = _harness.interleave(competitors, settings)
    for name, values in seconds.items():
        times = [value * 1e3 for value in values]
        yield _harness.spread_row(SUITE, case, name, "time_of_a_token", times, "ms")
    for name in names.values():
        for other in others:
            gains = [a / b for a, b in zip(seconds[other], seconds[name], strict=True)]
            yield _harness.spread_row(SUITE, case, name, f"gain-over-{other}", gains, "x")
