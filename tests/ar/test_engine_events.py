"""10,000 random submits, steps and cancellations against a loop that draws one at a time."""

from __future__ import annotations

import random

import pytest
import torch

from ardiff.ar.engine import AREngine
from ardiff.ar.requests import Finished
from tests._support.engine_oracle import PLACES, SOLVER, Drawn, draw_alone, prompt_of, tiny_model

EVENTS = 10_000
# Each patch is a few affine steps from contexts that differ by their rounding, up to 1e-5, and
# guidance of at most 3 and later patches build on it.
TOLERANCE = 1e-3


def kinds(chooser: random.Random, count: int, most: int) -> list[dict]:
    """Requests of up to `most` patches that differ in all that a request can say."""
    found = []
    for i in range(count):
        patches = chooser.randint(1, most)
        kind = {
            "prompt": chooser.choice([None, None, prompt_of(1), prompt_of(6, i)]),
            "patches": patches,
            "seed": chooser.choice([0, 7, -(2**62)]),
            "sample_id": chooser.randrange(2**43),
            "steps": chooser.choice([1, 1, 2]),
            "temperature": chooser.choice([1.0, 1.0, 0.7, 0.0]),
        }
        if chooser.random() < 0.3:
            kind["guidance"] = chooser.choice([1.5, 3.0])
            kind["guidance_schedule"] = chooser.choice(["constant", "linear"])
            kind["uncond"] = chooser.choice([None, prompt_of(2)])
            if chooser.random() < 0.5:
                kind |= {"guidance2": chooser.choice([0.5, 2.0]), "uncond2": prompt_of(1, i)}
        if chooser.random() < 0.5:
            kind["order"] = chooser.sample(range(PLACES), patches)
        if chooser.random() < 0.3:
            kind["stop"] = lambda x: bool(x[0] > 0.3)
        found.append(kind)
    return found


def submit(engine: AREngine, kind: dict) -> int:
    kind = dict(kind)
    prompt, patches = kind.pop("prompt"), kind.pop("patches")
    if "stop" in kind:
        ends = kind.pop("stop")
        kind["stop"] = lambda patch: ends(patch.values)
    return engine.submit(prompt, patches, **{"seed": 0, **kind})


def check(found: Finished, expected: Drawn, bits: bool) -> None:
    assert found.places == expected.places and found.stopped == expected.stopped
    if bits:
        assert torch.equal(found.patches, expected.patches)
    else:
        assert (found.patches - expected.patches).abs().max() <= TOLERANCE


class Watched:
    """An engine, its oracle, and what has become of its requests."""

    def __init__(self, chooser: random.Random, bits: bool, block: int) -> None:
        model = tiny_model(block)
        self.bits, self.chooser = bits, chooser
        self.known = kinds(chooser, 24, 4 if block == 1 else 7)
        self.expected = [draw_alone(model, cached=bits, **kind) for kind in self.known]
        self.engine = AREngine(
            model, SOLVER, 3, rows=7, capacity=15, block_size=4, blocks=18, batch_invariant=bits
        )
        self.live: dict[int, int] = {}
        self.finished = self.cancelled = self.refused = self.most_waiting = 0

    def submit(self) -> None:
        kind = self.chooser.randrange(len(self.known))
        self.live[submit(self.engine, self.known[kind])] = kind

    def cancel(self) -> None:
        request = self.chooser.choice(list(self.live))
        if self.engine.cancel(request):
            del self.live[request]
            self.cancelled += 1
            assert not self.engine.cancel(request)
        else:
            self.refused += 1

    def collect(self) -> None:
        for result in self.engine.collect():
            check(result, self.expected[self.live.pop(result.request)], self.bits)
            self.finished += 1

    def event(self) -> None:
        event = self.chooser.choices(["submit", "step", "cancel"], [42, 26, 32])[0]
        if event == "submit" and len(self.live) < 40:
            self.submit()
        elif event == "cancel" and self.live:
            self.cancel()
        else:
            made = self.engine.step()
            assert made or not (self.engine.running or self.engine.waiting)
            if self.chooser.random() < 0.5:
                self.collect()
        self.most_waiting = max(self.most_waiting, self.engine.waiting)
        assert self.engine.running <= 7 and self.engine.free_rows >= 0

    def end(self) -> None:
        while self.engine.step():
            pass
        self.collect()
        assert not self.live and not self.engine.waiting and not self.engine.running
        assert self.engine.free_rows == 7 and self.engine.free_blocks == 18


@pytest.mark.parametrize("bits", [True, False], ids=["batch-invariant", "rounding"])
def test_random_events(bits):
    """Every request that was not cancelled finishes once, as alone; all rows and blocks come back.

    Events fall on an engine of one patch a step and on one of three. A token, row, seed, level,
    place or guidance weight of another request would differ by far more than rounding.
    """
    chooser = random.Random(1)
    watched = [Watched(chooser, bits, block) for block in (1, 3)]
    for _ in range(EVENTS):
        chooser.choice(watched).event()
    for each in watched:
        each.end()
        assert each.finished > 800 and each.cancelled > 800
        assert each.most_waiting > 5 and each.refused > 50
