"""Many continuations of one prompt, which share its blocks of the cache, against as many separate
requests.

A case is `fork/<model>/prompt=<tokens>/copies=<N>/float32`. `begin-time` is from the submission to
the first patch of all N, `memory` what the blocks of N running requests take, and `append-time` one
more token of N rows behind the prompt: `separate` rows each read keys and values of their own.

    python -m ardiff bench context --case fork/mar-b/prompt=1024/copies=16/float32
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

import torch

from ardiff.ar.encoder import CausalEncoder, EncoderConfig
from ardiff.ar.engine import AREngine
from ardiff.ar.kv_cache import KVCache
from ardiff.ar.patch_model import PatchModel
from ardiff.heads.mar import DiffusionHead

from . import _harness
from ._harness import OURS, Row, Settings
from ._heads import Shape

SUITE = "context"
CASES = ("fork/mar-b/prompt=1024/copies=16/float32",)
DIM = 16
FLOW = ("flow", "flow", "flow-euler", 8)
MODELS = {
    "mar-b": (
        {"width": 768, "depth": 12, "heads": 12},
        Shape(DiffusionHead, DIM, 768, 1024, 6, *FLOW),
    ),
    "tiny": ({"width": 64, "depth": 1, "heads": 2}, Shape(DiffusionHead, DIM, 64, 32, 1, *FLOW)),
}
SEPARATE = "separate"
PATCHES, BLOCK_SIZE = 8, 16
# Contexts agree to 2e-5 (`bench_context`); patches of order 1 follow by a few affine steps.
TOLERANCE = 1e-3
_CASE = re.compile(r"fork/(?P<model>[\w-]+)/prompt=(?P<prompt>\d+)/copies=(?P<copies>\d+)/float32")


def parse(case: str) -> tuple[str, int, int]:
    """Model, tokens of the prompt and copies of a case.

    Raises:
        ValueError: a name of another form.
    """
    found = _CASE.fullmatch(case)
    if found and found["model"] in MODELS and int(found["prompt"]) and int(found["copies"]) > 1:
        return found["model"], int(found["prompt"]), int(found["copies"])
    raise ValueError(
        f"case {case!r}: expected fork/<model>/prompt=<tokens>/copies=<N>/float32 with a model of "
        f"{', '.join(MODELS)}, at least one token and two copies"
    )


def run(case: str, settings: Settings) -> Iterator[Row]:
    """Correctness of the patches, then memory and times of both."""
    name, prompt, copies = parse(case)
    torch.manual_seed(settings.seed)
    both = _Continuations(name, prompt, copies, settings.device)
    found, expected = both.patches(OURS), both.patches(SEPARATE)
    yield _harness.error_row(SUITE, case, OURS, found, expected, TOLERANCE)
    memory = {way: both.memory(way) for way in (OURS, SEPARATE)}
    for way, size in memory.items():
        yield Row(SUITE, case, way, "memory", size / 2**20, "MiB")
    ratio = [[memory[way]] for way in (SEPARATE, OURS)]
    yield _harness.speedup_row(SUITE, case, SEPARATE, *ratio, metric="memory-ratio")
    for metric, call in (("begin", both.begin), ("append", both.append)):
        calls = {way: partial(call, way) for way in (OURS, SEPARATE)}
        seconds = _harness.interleave(calls, settings)
        for way, times in seconds.items():
            milli = [value * 1e3 for value in times]
            yield _harness.spread_row(SUITE, case, way, f"{metric}-time", milli, "ms")
        yield _harness.speedup_row(
            SUITE, case, SEPARATE, seconds[SEPARATE], seconds[OURS], f"{metric}-speedup"
        )


class _Continuations:
    """N continuations of a prompt in an engine that shares and in one that does not, and the caches
    that such engines would have."""

    def __init__(self, name: str, prompt: int, copies: int, device: str = "cpu") -> None:
        sizes, self.shape = MODELS[name]
        config = EncoderConfig(**sizes, norm="layer", mlp="gelu", positions=prompt + PATCHES + 1)
        model = PatchModel(
            CausalEncoder(config), self.shape.head(seed=0), DIM, path=self.shape.path,
            prediction=self.shape.prediction,
        )  # fmt: skip
        self.model, self.copies = model.eval().requires_grad_(False).to(device), copies
        self.prompt, self.new = torch.randn(prompt + 1, config.width, device=device).split(
            [prompt, 1]
        )
        self.engines = {way: self._engine(share=way == OURS) for way in (OURS, SEPARATE)}
        self.caches = {way: self._cache(share=way == OURS) for way in (OURS, SEPARATE)}

    def _engine(self, share: bool) -> AREngine:
        return AREngine(
            self.model, self.shape.solver, self.shape.steps, rows=self.copies,
            block_size=BLOCK_SIZE, capacity=len(self.prompt) + PATCHES, share_prompts=share,
        )  # fmt: skip

    def _cache(self, share: bool) -> KVCache:
        encoder, rows = self.model.encoder, range(self.copies)
        cache = encoder.new_cache(
            self.copies, len(self.prompt) + 1, block_size=BLOCK_SIZE, dtype=encoder.dtype
        )
        for row in rows[:1] if share else rows:
            encoder.prefill(self.prompt[None], cache, [row])
        if share:
            cache.fork(0, rows[1:])
        return cache

    def submit(self, way: str) -> list[int]:
        engine, ids = self.engines[way], range(self.copies)
        if way == OURS:
            first = engine.submit(self.prompt, PATCHES, seed=0, sample_id=0)
            return [first, *engine.fork(first, self.copies - 1, sample_ids=ids[1:])]
        return [engine.submit(self.prompt, PATCHES, seed=0, sample_id=i) for i in ids]

    def patches(self, way: str) -> torch.Tensor:
        """`[N, PATCHES, d]`."""
        engine, ids = self.engines[way], self.submit(way)
        while engine.step():
            pass
        found = {each.request: each.patches for each in engine.collect()}
        return torch.stack([found[i] for i in ids])

    def begin(self, way: str) -> int:
        """The first patch of all; returns the bytes of the blocks that they hold then."""
        engine, ids = self.engines[way], self.submit(way)
        engine.step()
        used = engine.plan.blocks - engine.free_blocks
        for i in ids:
            engine.cancel(i)
        return engine.plan.memory_bytes // engine.plan.blocks * used

    memory = begin

    def append(self, way: str) -> torch.Tensor:
        """One more token of each row, `[N, 1, width]`."""
        cache = self.caches[way]
        cache.lengths = [len(self.prompt)] * self.copies
        return self.model.encoder.append(self.new.expand(self.copies, 1, -1), cache)
