"""Random submits, forks, steps and cancellations against a naive model of who holds which block."""

from __future__ import annotations

import random

import pytest

from ardiff.ar.engine import AREngine
from ardiff.ar.requests import MadePatch
from tests._support.engine_oracle import SOLVER, draw_alone, prompt_of, tiny_model
from tests.ar.test_engine import check

EVENTS, ROWS, BLOCKS, SIZE = 300, 14, 40, 4
Noise = list[tuple[int, int]]
# Few prompts, so that many requests have the same; two streams of a request never do.
PROMPTS = [None, prompt_of(1), prompt_of(5), prompt_of(6), prompt_of(9), prompt_of(9)]
UNCONDS = [prompt_of(3), prompt_of(4)]


def kinds(chooser: random.Random) -> list[dict]:
    found = []
    for _ in range(16):
        patches = chooser.randint(4, 8)
        kind: dict = {"prompt": chooser.choice(PROMPTS), "patches": patches}
        if chooser.random() < 0.4:
            kind |= {"guidance": 2.0, "uncond": chooser.choice(UNCONDS)}
            if chooser.random() < 0.4:
                kind |= {"guidance2": 0.5, "uncond2": prompt_of(2)}
        if chooser.random() < 0.4:
            kind["order"] = chooser.sample(range(8), patches)
        if chooser.random() < 0.3:
            kind["stop"] = lambda x: bool(x[0] > 0.3)
        found.append(kind)
    return found


def lengths(kind: dict) -> list[int]:
    """Tokens of the prompt of each stream."""
    others = [kind.get("uncond"), kind.get("uncond2")]
    prompts = [kind["prompt"], *(other for other in others if other is not None)]
    return [0 if prompt is None else len(prompt) for prompt in prompts]


class Watched:
    """An engine; of each live request its kind, its noise and who has made its steps."""

    def __init__(self, chooser: random.Random, block: int) -> None:
        self.chooser, self.block, self.model = chooser, block, tiny_model(block)
        self.engine = AREngine(
            self.model, SOLVER, 3, rows=ROWS, capacity=20, block_size=SIZE, blocks=BLOCKS,
            batch_invariant=True,
        )  # fmt: skip
        self.known = kinds(chooser)
        self.live: dict[int, tuple[dict, Noise]] = {}
        self.makers: dict[int, list[int]] = {}
        self.drawn: dict[tuple, object] = {}
        self.finished = self.forked = self.shared = 0

    def made(self, patch: MadePatch) -> None:
        if patch.index % self.block == 0:
            self.makers[patch.request].append(patch.request)

    def submit(self) -> None:
        kind = self.chooser.choice(self.known)
        options = {k: v for k, v in kind.items() if k not in ("prompt", "patches", "stop")}
        if "stop" in kind:
            options["stop"] = lambda patch: kind["stop"](patch.values)
        seed, sample = self.chooser.choice([0, 7]), self.chooser.randrange(3)
        new = self.engine.submit(
            kind["prompt"], kind["patches"], seed=seed, sample_id=sample, on_patch=self.made,
            **options,
        )  # fmt: skip
        self.live[new], self.makers[new] = (kind, [(seed, sample)] * kind["patches"]), []

    def fork(self) -> None:
        old = self.chooser.choice(list(self.live))
        (kind, noise), makers = self.live[old], self.makers[old]
        n, seed = self.chooser.choice([1, 2, 3]), self.chooser.choice([0, 7])
        samples = self.chooser.sample(range(10, 30), n)
        if noise[-1] in [(seed, sample) for sample in samples]:
            return
        before = len(makers) * self.block
        for new, sample in zip(
            self.engine.fork(old, n, seed=seed, sample_ids=samples), samples, strict=True
        ):
            later = [(seed, sample)] * (kind["patches"] - before)
            self.live[new], self.makers[new] = (kind, noise[:before] + later), makers.copy()
            self.forked += 1

    def collect(self) -> None:
        for found in self.engine.collect():
            kind, noise = self.live.pop(found.request)
            key = (id(kind), *noise)
            if key not in self.drawn:
                self.drawn[key] = draw_alone(self.model, cached=True, noise=noise, **kind)
            check(found, self.drawn[key], bits=True)
            self.finished += 1

    def event(self) -> None:
        event = self.chooser.choices(["submit", "fork", "step", "cancel"], [20, 18, 40, 14])[0]
        if event == "submit" and len(self.live) < 24:
            self.submit()
        elif event == "fork" and 0 < len(self.live) < 24:
            self.fork()
        elif event == "cancel" and self.live:
            gone = self.chooser.choice(list(self.live))
            assert self.engine.cancel(gone)
            del self.live[gone]
        else:
            made = self.engine.step()
            assert made or not (self.engine.running or self.engine.waiting)
            self.collect()
        self.count()

    def count(self) -> None:
        """One block for all rows whose tokens up to its end are the same ones, made once: those of
        equal prompts, and of steps that were made before a fork. All others are a row's own."""
        pool, running = self.engine._cache._pool, self.engine._queue.running
        assert pool.holders == [sum(b in held for held in pool.held) for b in range(BLOCKS)]
        held: dict[tuple, int] = {}
        rows = 0
        for request in running:
            kind, _ = self.live[request.id]
            steps = [("step", m, i) for i, m in enumerate(self.makers[request.id])]
            whole = -(-kind["patches"] // self.block) * self.block
            for stream, length in enumerate(lengths(kind)):
                prompt = [("prompt", length, i) for i in range(length)]
                tokens = prompt + [step for step in steps for _ in range(self.block)]
                for first in range(0, length + whole, SIZE):
                    key = tuple(tokens[: first + SIZE])
                    if len(key) < first + SIZE:
                        key = ("own", request.id, stream, first)
                    elif tokens and first + SIZE > length:
                        key = (*key, stream)  # of a step: in the same stream alone
                    held[key] = held.get(key, 0) + 1
                rows += 1
        assert self.engine.free_blocks == BLOCKS - len(held)
        assert self.engine.free_rows == ROWS - rows
        counts = sorted(n for n in pool.holders if n)
        assert counts == sorted(held.values())
        self.shared += counts != [1] * len(counts)

    def end(self) -> None:
        while self.engine.step():
            self.count()
        self.collect()
        assert not self.live and not self.engine.waiting and not self.engine.running
        assert self.engine.free_rows == ROWS and self.engine.free_blocks == BLOCKS


@pytest.mark.parametrize("block", [1, 2])
def test_random_forks(block):
    """Each request that is not cancelled draws the bits that it would draw alone; the blocks in
    use, and how many rows hold each, are those of the naive model after every event."""
    watched = Watched(random.Random(5), block)
    for _ in range(EVENTS):
        watched.event()
    watched.end()
    assert watched.finished > 40 and watched.forked > 40 and watched.shared > EVENTS // 8
