"""Many continuations of one prompt, which share its blocks of the cache, against as many separate
requests.

A case is `fork/<model>/prompt=<tokens>/copies=<N>/float32`. `begin-time` is from the submission to
the first patch of all N, `memory` what the blocks of N running requests take, and `append-time` one
more token of N rows behind the prompt: `separate` rows each read keys and values of their own.

    python -m ardiff bench context --case fork/mar-b/prompt=1024/copies=16/float32
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import torch

from ardiff.ar.encoder import CausalEncoder, EncoderConfig
from ardiff.ar.engine import AREngine
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
    work = _Work(name, prompt, copies, settings.device)
    engines = {way: _Engine(work, share=way == OURS) for way in (OURS, SEPARATE)}
    found, expected = (engines[way].patches() for way in (OURS, SEPARATE))
    yield _harness.error_row(SUITE, case, OURS, found, expected, TOLERANCE)
    memory = {way: engine.begin() for way, engine in engines.items()}
    for way, size in memory.items():
        yield Row(SUITE, case, way, "memory", size / 2**20, "MiB")
    ratio = [[memory[way]] for way in (SEPARATE, OURS)]
    yield _harness.speedup_row(SUITE, case, SEPARATE, *ratio, metric="memory-ratio")
    yield from _times(case, "begin", {n: engine.begin for n, engine in engines.items()}, settings)
    engines.clear()  # so that one pair of caches is held at a time
    rows = {way: _CacheRows(work, share=way == OURS) for way in (OURS, SEPARATE)}
    yield from _times(case, "append", {n: each.append for n, each in rows.items()}, settings)


def _times(
    case: str, name: str, calls: dict[str, Callable[[], object]], settings: Settings
) -> Iterator[Row]:
    seconds = _harness.interleave(calls, settings)
    for way, times in seconds.items():
        milli = [value * 1e3 for value in times]
        yield _harness.spread_row(SUITE, case, way, f"{name}-time", milli, "ms")
    metric = f"{name}-speedup"
    yield _harness.speedup_row(SUITE, case, SEPARATE, seconds[SEPARATE], seconds[OURS], metric)


class _Work:
    """A model, a prompt `[n, width]`, and how many sequences go on from it."""

    def __init__(self, name: str, prompt: int, copies: int, device: str = "cpu") -> None:
        sizes, self.shape = MODELS[name]
        config = EncoderConfig(**sizes, norm="layer", mlp="gelu", positions=prompt + PATCHES + 1)
        model = PatchModel(
            CausalEncoder(config), self.shape.head(seed=0), DIM, path=self.shape.path,
            prediction=self.shape.prediction,
        )  # fmt: skip
        self.model, self.copies = model.eval().requires_grad_(False).to(device), copies
        self.prompt = torch.randn(prompt, config.width, device=device)

    def blocks(self, tokens: int, share: bool) -> int:
        """Of the cache, for all copies to hold `tokens` tokens."""
        whole, common = -(-tokens // BLOCK_SIZE), len(self.prompt) // BLOCK_SIZE
        return common + self.copies * (whole - common) if share else self.copies * whole


class _Engine:
    """An engine with the blocks that N requests need if they share their prompt, or if not."""

    def __init__(self, work: _Work, share: bool) -> None:
        capacity = len(work.prompt) + PATCHES
        self.work, self.share = work, share
        self.engine = AREngine(
            work.model, work.shape.solver, work.shape.steps, rows=work.copies, capacity=capacity,
            block_size=BLOCK_SIZE, blocks=work.blocks(capacity, share), share_prompts=share,
        )  # fmt: skip

    def submit(self) -> list[int]:
        engine, prompt, ids = self.engine, self.work.prompt, range(self.work.copies)
        if self.share:
            first = engine.submit(prompt, PATCHES, seed=0, sample_id=0)
            return [first, *engine.fork(first, len(ids) - 1, sample_ids=ids[1:])]
        return [engine.submit(prompt, PATCHES, seed=0, sample_id=i) for i in ids]

    def patches(self) -> torch.Tensor:
        """`[N, PATCHES, d]`."""
        ids = self.submit()
        while self.engine.step():
            pass
        found = {each.request: each.patches for each in self.engine.collect()}
        return torch.stack([found[i] for i in ids])

    def begin(self) -> int:
        """The first patch of all; returns the bytes of the blocks that they hold then."""
        engine, ids = self.engine, self.submit()
        engine.step()
        used = engine.plan.blocks - engine.free_blocks
        for i in ids:
            engine.cancel(i)
        return engine.plan.memory_bytes // engine.plan.blocks * used


class _CacheRows:
    """N rows that hold the prompt, in the same blocks or in blocks of their own."""

    def __init__(self, work: _Work, share: bool) -> None:
        tokens, rows = len(work.prompt) + 1, range(work.copies)
        self.work, self.encoder = work, work.model.encoder
        self.cache = self.encoder.new_cache(
            work.copies, tokens, block_size=BLOCK_SIZE, blocks=work.blocks(tokens, share),
            dtype=self.encoder.dtype,
        )  # fmt: skip
        for row in rows[:1] if share else rows:
            self.encoder.prefill(work.prompt[None], self.cache, [row])
        if share:
            self.cache.fork(0, rows[1:])

    def append(self) -> torch.Tensor:
        """One more token of each row, `[N, 1, width]`."""
        copies = self.work.copies
        self.cache.lengths = [len(self.work.prompt)] * copies
        return self.encoder.append(self.work.prompt[:1].expand(copies, 1, -1), self.cache)
