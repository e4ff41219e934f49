"""Runs with a lookahead: their rounds of model calls, and their time, against row by row.

Mixtures with exact scores (`mixture-16/ddpm/steps=100/L=8`), the patches of the shipped model at
contexts of images that it drew (`sun-shadow/...`), and a trained head of MAR-B's size (`mar-b/...`,
trained for some minutes at the first run). `L=picard-128` is Picard iteration with 128 rows.

A case begins with the Picard run of its table without tolerance, held against the run row by row:
equal but for the rounding of products of another size. `fewer` is how many times fewer rounds than
rows; of rival `frozen` with guesses that keep the last data prediction (De Bortoli et al. 2025).
`states` are those evaluated for each row of the table. Where a case has a head, four tokens are
timed, each alone (`speedup` against our own loop row by row, interleaved).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import ardiff
from ardiff.data.mixture import random_mixture
from ardiff.heads.fused import FusedHead
from ardiff.loop import lookahead as ahead
from ardiff.loop.lookahead import Lookahead, run_lookahead
from ardiff.loop.run import run as run_rows
from ardiff.noise import initial_state, make_key, make_stream
from ardiff.tables.table import StepTable

from . import _harness
from ._harness import Row, Settings
from .trained_head import trained_head

SUITE = "rounds"
_LOOKAHEADS = ("4", "8", "16", "auto")
CASES = (
    *(f"mixture-{d}/ddpm/steps=100/L={rows}" for d in (2, 10, 64) for rows in _LOOKAHEADS),
    *(f"mixture-64/{name}/steps=48/L=8" for name in ("dpmpp-2m-sde", "rtk-harmonic", "rtk-uld")),
    *(f"mixture-64/{name}/steps=128/L=picard-128" for name in ("ddpm", "dpmpp-2m")),
    "sun-shadow/ddpm/steps=48/L=8",
    *(f"sun-shadow/ddpm/steps=100/L={rows}" for rows in ("12", *_LOOKAHEADS)),
    "sun-shadow/dpmpp-2m-sde/steps=48/L=8",
    "sun-shadow/dpmpp-2m/steps=64/L=picard-64",
    *(f"mar-b/ddpm/steps=100/L={rows}" for rows in _LOOKAHEADS),
)
TOLERANCE = 1e-3
_MIXTURES = {2: 12, 10: 13, 64: 14}
TIMED = 4  # tokens
SAMPLES = {"mixture": 100, "sun-shadow": 8, "mar-b": 16}


class Subject(NamedTuple):
    """What a case samples: a model, a table, d, and the condition of n samples of each patch."""

    model: Any
    table: StepTable
    d: int
    conditions: list[Tensor | None]


def parse(case: str) -> tuple[str, str, int, Lookahead]:
    """Model, solver, steps and lookahead of `<model>/<solver>/steps=<n>/L=<rows>`.

    Raises:
        ValueError: a name of another form.
    """
    parts = case.split("/")
    form = f"case {case!r}: expected <model>/<solver>/steps=<n>/L=<rows>, such as {CASES[0]}"
    if len(parts) != 4 or not parts[2].startswith("steps=") or not parts[3].startswith("L="):
        raise ValueError(form)
    rows, steps = parts[3][2:], parts[2][6:]
    picard = rows.startswith("picard-")
    number = rows.removeprefix("picard-")
    if not steps.isdecimal() or not (number.isdecimal() or rows == "auto"):
        raise ValueError(form)
    length = rows if rows == "auto" else int(number)
    return parts[0], parts[1], int(steps), Lookahead(length, "picard" if picard else "speculative")


def subject(name: str, solver: str, steps: int) -> Subject:
    """The model of a case by its name."""
    if name.startswith("mixture-"):
        mixture = random_mixture(_MIXTURES[int(name.removeprefix("mixture-"))])
        table = ardiff.solver(solver, path="edm", prediction="sample", steps=steps)
        return Subject(mixture.model("edm", "sample"), table, mixture.means.shape[1], [None])
    if name == "mar-b":
        shape, head, contexts = _mar_b()
        table = shape.table(solver, steps)
        return Subject(FusedHead(head), table, shape.dim, [contexts[: SAMPLES[name]]])
    model = ardiff.load(name)
    config = model.config
    table = ardiff.solver(
        solver, path=config.path, prediction=config.prediction, steps=steps, **config.grid_options()
    )
    contexts = _contexts()
    denoiser = FusedHead(model.denoiser)
    return Subject(denoiser, table, config.patch_dim, list(contexts.unbind(1)))


_mar_b = functools.cache(trained_head)


@functools.cache
def _contexts() -> Tensor:
    """`[n, patches, width]`: what the shipped model's patches are conditioned on."""
    model = ardiff.load("sun-shadow")
    images = ardiff.ARSampler(model, "ddpm", steps=48).sample(SAMPLES["sun-shadow"], seed=3).images
    with torch.inference_mode():
        found = model.context.encode(model.to_patches(images))
    return found[0] if isinstance(found, tuple) else found


class _Frozen(ahead._Run):
    """A run whose guesses are the last data prediction."""

    def _learned(self, states: Tensor, found: Any, window: tuple[Tensor, ...]) -> dict[str, Tensor]:
        last = (found.row - window[0] - 1).clamp(min=0).long()
        samples = torch.arange(len(last))
        return {
            "known_x": states[samples, last][:, None].contiguous(),
            "known_0": found.x0[samples, last][:, None].contiguous(),
            "gain": torch.zeros(len(last), 1),
            "known_row": found.row - 1, "known_count": torch.ones_like(found.row),
        }  # fmt: skip


def _frozen(*args: Any, **options: Any) -> tuple[Tensor, ahead.Rounds]:
    kind = ahead._Run
    ahead._Run = _Frozen
    try:
        return run_lookahead(*args, **options)
    finally:
        ahead._Run = kind


def run(case: str, settings: Settings) -> Iterator[Row]:
    """Correctness, then rounds and states, and the time of one sample where there is a head."""
    name, solver, steps, setting = parse(case)
    model, table, d, conditions = subject(name, solver, steps)
    n = SAMPLES[name.split("-")[0] if name.startswith("mixture") else name]
    key = make_key(settings.seed, "cpu")

    def start(batch: int, patch: int) -> tuple[Tensor, dict[str, Tensor]]:
        stream = make_stream(None, batch, patch, "cpu")
        return initial_state(table, key, stream, d), {"key": key, "stream": stream}

    x, address = start(2, 0)
    given = {"condition": None if conditions[0] is None else conditions[0][:2], **address}
    expected = run_rows(table, model, x, **given)
    found, _ = run_lookahead(table, model, x, Lookahead(len(table), "picard", 0.0), **given)
    yield _harness.error_row(SUITE, case, "sequential", found, expected, TOLERANCE)

    def counted(runs: Callable) -> tuple[float, float, float]:
        rounds, states, kept = [], [], []
        for patch, condition in enumerate(conditions):
            x, address = start(n, patch)
            _, made = runs(table, model, x, setting, condition=condition, **address)
            rounds += made.rounds.tolist()
            states.append(made.evaluated / n)
            kept += made.windows[:, 3].tolist()
        return float(np.mean(rounds)), float(np.mean(states)), float(np.mean(kept))

    forms = {_harness.OURS: run_lookahead}
    if setting.mode == "speculative":
        forms["frozen"] = _frozen
    for form, runs in forms.items():
        rounds, states, kept = counted(runs)
        yield Row(SUITE, case, form, "rounds", rounds)
        yield Row(SUITE, case, form, "fewer", table.calls / rounds, "x")
        yield Row(SUITE, case, form, "states", states / table.calls, "per row")
        yield Row(SUITE, case, form, "kept", kept, "rows per round")
    if conditions[0] is None:
        return
    tokens = []  # one after the other, each alone
    for sample in range(-(-TIMED // len(conditions))):
        for patch, condition in enumerate(conditions):
            stream = make_stream([sample], 1, patch, "cpu")
            given = {"condition": condition[sample : sample + 1], "key": key, "stream": stream}
            tokens.append((initial_state(table, key, stream, d), given))

    def each(one: Callable) -> Callable[[], None]:
        return lambda: [one(x, given) for x, given in tokens] and None

    seconds = _harness.interleave(
        {
            _harness.OURS: each(lambda x, given: run_lookahead(table, model, x, setting, **given)),
            "sequential": each(lambda x, given: run_rows(table, model, x, **given)),
        },
        settings,
    )
    for form, values in seconds.items():
        times = [1e3 * value / len(tokens) for value in values]
        yield _harness.spread_row(SUITE, case, form, "time", times, "ms/token")
    yield _harness.speedup_row(
        SUITE, case, "sequential", seconds["sequential"], seconds[_harness.OURS]
    )
