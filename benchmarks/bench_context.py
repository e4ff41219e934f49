"""What the context of a patch costs behind K others: a KV cache against encoding the prefix anew.

One case is a whole curve, `<model>/K=<longest>/float32`: its lengths are timed interleaved, so that
a growth is a ratio within one run, and so are ours and one rival after the other. Rivals:
`reference-ddpm` encodes the prefix anew as that loop does, `sdpa` is a preallocated cache read by
`scaled_dot_product_attention`.

    python -m ardiff bench context --json out/bench-context.json
    python -m benchmarks.plot_context out/bench-context.json docs/context_cost.svg
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from ardiff.loop.run import run as run_table
from ardiff.models.image_model import ARModel, ModelConfig
from ardiff.noise import initial_state, make_stream
from ardiff.solvers import solver

from . import _harness
from ._harness import Row, Settings
from .reference_encoder import SlicedCache, reference_encoder

SUITE = "context"
CASES = ("mar-b/K=1024/float32",)
BATCH, STEPS = 8, 100
MODELS = {
    "mar-b": {
        "context_width": 768, "context_depth": 12, "context_heads": 12, "head_width": 1024,
        "head_depth": 6,
    },
    "tiny": {
        "context_width": 64, "context_depth": 1, "context_heads": 2, "head_width": 32,
        "head_depth": 1,
    },
}  # fmt: skip
SHORTEST, BASE = 16, 64
LONGEST_ANEW = 256  # a prefix of 1,024 takes half a minute a round to encode anew
# Two float32 evaluations of the same network; contexts are of order 1 after the last norm.
TOLERANCE = 2e-5


def parse(case: str) -> tuple[str, list[int]]:
    """Model and lengths 16, 32, ... of `<model>/K=<longest>/float32`.

    Raises:
        ValueError: a name of another form.
    """
    parts = case.split("/")
    if len(parts) == 3 and parts[0] in MODELS and parts[2] == "float32":
        longest = parts[1].removeprefix("K=")
        lengths = [SHORTEST << i for i in range(7)]
        if longest.isdecimal() and int(longest) in lengths:
            return parts[0], [k for k in lengths if k <= int(longest)]
    raise ValueError(
        f"case {case!r}: expected <model>/K=<longest>/float32 with a model of {', '.join(MODELS)} "
        "and a longest of 16, 32, ... 1024"
    )


def run(case: str, settings: Settings) -> Iterator[Row]:
    """Correctness of all three at the shortest length, then the times of a patch at each length."""
    name, lengths = parse(case)
    torch.manual_seed(settings.seed)
    with torch.device(settings.device):
        model = ARModel(ModelConfig(image_size=64, patch_size=2, channels=4, **MODELS[name]))
        patches = torch.randn(BATCH, lengths[-1], model.config.patch_dim)
    model.eval().requires_grad_(False)
    contexts = _Contexts(model, patches)
    with torch.inference_mode():
        expected = contexts.plain.encode(patches[:, : SHORTEST - 1])
        for rival, found in contexts.incremental(SHORTEST).items():
            yield _harness.error_row(SUITE, case, rival, found, expected, TOLERANCE)
        contexts.fill()
        ways = {"sdpa": contexts.sliced, "reference-ddpm": contexts.anew}
        for rival, way in settings.pick(ways).items():
            few = [k for k in lengths if k <= LONGEST_ANEW or rival != "reference-ddpm"]
            calls = {(_harness.OURS, k): partial(contexts.cached, k) for k in few}
            calls |= {(rival, k): partial(way, k) for k in few}
            yield from _against(name, rival, few, _harness.interleave(calls, settings))
        for metric, way in (("encoder", contexts.cached), ("sampling", contexts.sample)):
            calls = {k: partial(way, k) for k in lengths}
            yield from _curve(name, metric, _harness.interleave(calls, settings))


class _Contexts:
    """The context of patch K in three ways, and the patch it leads to."""

    def __init__(self, model: ARModel, patches: torch.Tensor) -> None:
        self.model, self.patches = model, patches
        self.ours, self.plain = model.context, reference_encoder(model.context)
        length = patches.shape[1]
        self.cache = self.ours.new_cache(BATCH, length)
        self.cache.reserve(range(BATCH), [length] * BATCH)
        self.slices = self.plain.new_cache(BATCH)
        config = model.config
        self.table = solver(
            "ddpm", path=config.path, prediction=config.prediction, steps=STEPS,
            **config.grid_options(),
        )  # fmt: skip

    def cached(self, k: int) -> torch.Tensor:
        self.cache.lengths = [k - 1] * BATCH
        return self.ours.append(self._token(k), self.cache)[:, 0]

    def _token(self, k: int) -> torch.Tensor:
        if k == 1:
            return self.model.start.expand(BATCH, 1, -1)
        return self.ours.embed(self.patches[:, k - 2 : k - 1])

    def sliced(self, k: int) -> torch.Tensor:
        cache = SlicedCache(self.slices.keys, self.slices.values, k - 1)
        return self.plain.step(self.patches[:, k - 2] if k > 1 else None, cache)

    def anew(self, k: int) -> torch.Tensor:
        return self.plain.encode(self.patches[:, : k - 1])[:, -1]

    def incremental(self, length: int) -> dict[str, torch.Tensor]:
        each = {_harness.OURS: self.cached, "sdpa": self.sliced}
        return {
            name: torch.stack([way(k + 1) for k in range(length)], 1) for name, way in each.items()
        }

    def fill(self) -> None:
        """Tokens before those that are timed: their values do not matter to the time."""
        view = self.cache.view(range(BATCH))
        for part in (*view.keys, *view.values, self.slices.keys, self.slices.values):
            part.normal_()

    def sample(self, k: int) -> torch.Tensor:
        """A whole patch: its context, then all steps of the head."""
        context = self.cached(k)
        stream = make_stream(None, BATCH, 0, context.device)
        key = torch.zeros(1, dtype=torch.int64, device=context.device)
        x = initial_state(self.table, key, stream, self.model.config.patch_dim)
        return run_table(
            self.table, self.model.denoiser, x, key=key, stream=stream, condition=context
        )


def _against(
    name: str, rival: str, lengths: list[int], seconds: dict[tuple[str, int], list[float]]
) -> Iterator[Row]:
    for k in lengths:
        case, theirs = f"{name}/K={k}/float32", seconds[rival, k]
        milli = [value * 1e3 for value in theirs]
        yield _harness.spread_row(SUITE, case, rival, "encoder-time", milli, "ms/patch")
        yield _harness.speedup_row(SUITE, case, rival, theirs, seconds[_harness.OURS, k])


def _curve(name: str, metric: str, seconds: dict[int, list[float]]) -> Iterator[Row]:
    """Times at each length, and their growth from `BASE`."""
    for k, times in seconds.items():
        case, milli = f"{name}/K={k}/float32", [value * 1e3 for value in times]
        yield _harness.spread_row(SUITE, case, _harness.OURS, f"{metric}-time", milli, "ms/patch")
        if k > BASE:
            ratios = [late / early for late, early in zip(times, seconds[BASE], strict=True)]
            yield _harness.spread_row(SUITE, case, _harness.OURS, f"{metric}-growth", ratios, "x")
