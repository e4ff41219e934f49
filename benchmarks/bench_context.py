"""What the context of a patch costs behind K others: a KV cache against encoding the prefix anew.

One case is a whole curve, `<model>/K=<longest>/float32`: all its lengths are timed interleaved, so
that a growth is a ratio within one run. Rivals: `reference-ddpm` encodes the prefix anew as that
loop does, `sdpa` is a preallocated cache read by `scaled_dot_product_attention`.

    python -m ardiff bench context --json out/bench-context.json
    python -m benchmarks.plot_context out/bench-context.json docs/context_cost.svg
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from ardiff.models.ar_model import ARModel, ModelConfig
from ardiff.models.context import SlicedCache
from ardiff.models.patch_model import patch_model
from ardiff.run import initial_state
from ardiff.run import run as run_table
from ardiff.solvers import solver

from . import _harness
from ._harness import Row, Settings

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
        expected = model.context.encode(patches[:, : SHORTEST - 1])
        for rival, found in contexts.incremental(SHORTEST).items():
            yield _harness.error_row(SUITE, case, rival, found, expected, TOLERANCE)
        contexts.fill()
        competitors: dict[str, Callable[[], object]] = {}
        for k in lengths:
            rivals = {
                "sdpa": lambda k=k: contexts.sliced(k),
                "reference-ddpm": lambda k=k: contexts.anew(k),
            }
            competitors[f"{_harness.OURS}/{k}"] = lambda k=k: contexts.cached(k)
            competitors[f"sampling/{k}"] = lambda k=k: contexts.draw(contexts.cached(k))
            for rival, call in settings.pick(rivals).items():
                if k <= LONGEST_ANEW or rival != "reference-ddpm":
                    competitors[f"{rival}/{k}"] = call
        seconds = _harness.interleave(competitors, settings)
    yield from _rows(name, lengths, seconds)


class _Contexts:
    """The context of patch K in three ways, and the patch it leads to."""

    def __init__(self, model: ARModel, patches: torch.Tensor) -> None:
        self.model, self.patches = model, patches
        self.ours = patch_model(model)
        length = patches.shape[1]
        self.cache = self.ours.encoder.new_cache(BATCH, length)
        self.cache.reserve(range(BATCH), [length] * BATCH)
        self.slices = model.context.new_cache(BATCH)
        config = model.config
        self.table = solver(
            "ddpm", path=config.path, prediction=config.prediction, steps=STEPS,
            **config.grid_options(),
        )  # fmt: skip

    def cached(self, k: int) -> torch.Tensor:
        self.cache.lengths = [k - 1] * BATCH
        return self.ours.encoder.append(self._token(k), self.cache)[:, 0]

    def _token(self, k: int) -> torch.Tensor:
        if k == 1:
            return self.ours.start.expand(BATCH, 1, -1)
        return self.ours.embed(self.patches[:, k - 2 : k - 1])

    def sliced(self, k: int) -> torch.Tensor:
        cache = SlicedCache(self.slices.keys, self.slices.values, k - 1)
        return self.model.context.step(self.patches[:, k - 2] if k > 1 else None, cache)

    def anew(self, k: int) -> torch.Tensor:
        return self.model.context.encode(self.patches[:, : k - 1])[:, -1]

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

    def draw(self, context: torch.Tensor) -> torch.Tensor:
        stream = torch.arange(BATCH, device=context.device) << 20
        key = torch.zeros(1, dtype=torch.int64, device=context.device)
        x = initial_state(self.table, key, stream, self.model.config.patch_dim)
        return run_table(
            self.table, self.model.denoiser, x, key=key, stream=stream, condition=context
        )


def _rows(name: str, lengths: list[int], seconds: dict[str, list[float]]) -> Iterator[Row]:
    ours = _harness.OURS
    for k in lengths:
        case = f"{name}/K={k}/float32"
        for rival in (ours, "sdpa", "reference-ddpm"):
            if (times := seconds.get(f"{rival}/{k}")) is not None:
                milli = [value * 1e3 for value in times]
                yield _harness.spread_row(SUITE, case, rival, "encoder-time", milli, "ms/patch")
                if rival != ours:
                    yield _harness.speedup_row(SUITE, case, rival, times, seconds[f"{ours}/{k}"])
        milli = [value * 1e3 for value in seconds[f"sampling/{k}"]]
        yield _harness.spread_row(SUITE, case, ours, "sampling-time", milli, "ms/patch")
        if k > BASE:
            for metric, kind in (("encoder-growth", ours), ("sampling-growth", "sampling")):
                pairs = zip(seconds[f"{kind}/{k}"], seconds[f"{kind}/{BASE}"], strict=True)
                ratios = [late / early for late, early in pairs]
                yield _harness.spread_row(SUITE, case, ours, metric, ratios, "x")
