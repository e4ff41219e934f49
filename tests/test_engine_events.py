"""10,000 random submits, steps and cancellations against a loop that draws one at a time."""

from __future__ import annotations

import random

import pytest
import torch
from engine_oracle import PLACES, SOLVER, Drawn, draw_alone, prompt_of, tiny_model

from ardiff.engine import AREngine
from ardiff.requests import Finished

EVENTS = 10_000
# Each patch is a few affine steps from contexts that differ by their rounding, up to 1e-5, and
# guidance of at most 3 and later patches build on it.
TOLERANCE = 1e-3


def kinds(chooser: random.Random, count: int) -> list[dict]:
    """Requests that differ in all that a request can say."""
    found = []
    for i in range(count):
        patches = chooser.randint(1, 4)
        kind = {
            "prompt": chooser.choice([None, prompt_of(1), prompt_of(3, i), prompt_of(6, i)]),
            "patches": patches,
            "seed": chooser.choice([0, 7, -(2**62)]),
            "sample_id": chooser.randrange(2**43),
            "steps": chooser.choice([1, 2]),
            "temperature": chooser.choice([1.0, 1.0, 0.7, 0.0]),
        }
        if chooser.random() < 0.4:
            kind["guidance"] = chooser.choice([1.5, 3.0])
            kind["guidance_schedule"] = chooser.choice(["constant", "linear"])
            kind["uncond"] = chooser.choice([None, prompt_of(2)])
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
    return engine.submit(prompt, patches, **kind)


def check(found: Finished, expected: Drawn, bits: bool) -> None:
    assert found.places == expected.places and found.stopped == expected.stopped
    if bits:
        assert torch.equal(found.patches, expected.patches)
    else:
        assert (found.patches - expected.patches).abs().max() <= TOLERANCE


@pytest.mark.parametrize("bits", [True, False], ids=["batch-invariant", "rounding"])
def test_random_events(bits):
    """Every request that was not cancelled finishes once, as alone; all rows and blocks come back.

    A token, row, seed, level or guidance weight of another request would differ by far more than
    rounding.
    """
    chooser, model = random.Random(1), tiny_model()
    known = kinds(chooser, 48)
    expected = [draw_alone(model, cached=bits, **kind) for kind in known]
    engine = AREngine(
        model, SOLVER, 3, rows=7, capacity=12, block_size=4, blocks=16, batch_invariant=bits
    )
    live: dict[int, int] = {}
    finished, cancelled, most_waiting, refused = 0, 0, 0, 0

    def collect() -> int:
        results = engine.collect()
        for result in results:
            check(result, expected[live.pop(result.request)], bits)
        return len(results)

    for _ in range(EVENTS):
        event = chooser.choices(["submit", "step", "cancel"], [40, 32, 28])[0]
        if event == "submit" and len(live) < 40:
            kind = chooser.randrange(len(known))
            live[submit(engine, known[kind])] = kind
        elif event == "cancel" and live:
            request = chooser.choice(list(live))
            if engine.cancel(request):
                del live[request]
                cancelled += 1
                assert not engine.cancel(request)
            else:
                refused += 1
        else:
            made = engine.step()
            assert made or not (engine.running or engine.waiting)
            if chooser.random() < 0.5:
                finished += collect()
        most_waiting = max(most_waiting, engine.waiting)
        assert engine.running <= 7 and engine.free_rows >= 0
    while engine.step():
        pass
    finished += collect()
    assert not live and not engine.waiting and not engine.running
    assert engine.free_rows == 7 and engine.free_blocks == 16
    assert finished > 800 and cancelled > 800 and most_waiting > 5 and refused > 10
