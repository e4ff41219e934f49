"""`kv_attention` for one new token per sequence against PyTorch in the same dtype, and as a share
of the read bandwidth of the same run.

A case is `kv_attention/B=<rows>/heads=<q>:<kv>/D=<dim>/length=<n>/<dtype>`, all rows n tokens long,
or `length=1-<n>`, lengths uniform in 1..n. The rivals then work on the padded cache with a mask, as
a user would call them: `sdpa` is `scaled_dot_product_attention`, `eager` two matrix products around
a softmax, `compile` that under `torch.compile`. Bytes counted are the keys and values that a row
has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

import ardiff_kernels
from ardiff_kernels.ops import kv_attention

from . import _harness, _ops, _rivals
from ._harness import Row, Settings

SUITE = "context"
CASES = tuple(
    f"kv_attention/B=16/heads=16:4/D=64/length={length}/{dtype}"
    for dtype in ("bfloat16", "float32")
    for length in ("4096", "1-4096")
)
_CASE = re.compile(
    r"kv_attention/B=(?P<rows>\d+)/heads=(?P<heads>\d+):(?P<kv_heads>\d+)/D=(?P<dim>\d+)"
    r"/length=(?P<ragged>1-)?(?P<length>\d+)/(?P<dtype>\w+)"
)
_READ = "read"
_CHECKED_ROWS = 2
# Float32 sums of thousands of terms; rounding of the result and of the softmax's weights.
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2.0**-6}


@dataclass(frozen=True)
class Inputs:
    """A decoding step: q `[B, 1, Hq, D]`, caches `[B, Hkv, n, D]`, lengths with the new token."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    tokens: Tensor
    ragged: bool

    @property
    def elements(self) -> int:
        """Elements of the keys and values that the rows have."""
        return 2 * int(self.tokens.sum()) * self.k_cache.shape[1] * self.k_cache.shape[3]

    def ours(self) -> Tensor:
        return kv_attention(self.q, self.k_cache, self.v_cache, self.tokens - 1)

    def _mask(self) -> Tensor | None:
        """`[B, 1, 1, n]`, where a row has tokens; None where all rows fill the cache."""
        if not self.ragged:
            return None
        positions = torch.arange(self.k_cache.shape[2], device=self.q.device)
        return (positions < self.tokens[:, None])[:, None, None]

    def sdpa(self) -> Callable[[], Tensor]:
        """PyTorch's attention `[B, Hq, 1, D]`, the mask made beforehand."""
        q, mask = self.q.transpose(1, 2), self._mask()
        return lambda: functional.scaled_dot_product_attention(
            q, self.k_cache, self.v_cache, attn_mask=mask, enable_gqa=True
        )

    def rivals(self) -> dict[str, Callable[[], Tensor]]:
        """Each gives `[B, Hq, 1, D]`. The query heads of a key head are rows of one product."""
        B, _, Hq, D = self.q.shape
        Hkv = self.k_cache.shape[1]
        tensors = self.q.view(B, Hkv, Hq // Hkv, D), self.k_cache, self.v_cache, self._mask()

        def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            scores = q @ k.mT * D**-0.5
            if mask is not None:
                scores = scores.masked_fill(~mask, float("-inf"))
            return (scores.softmax(-1) @ v).view(B, Hq, 1, D)

        return {
            "sdpa": self.sdpa(),
            "eager": partial(attention, *tensors),
            "compile": partial(_rivals.compiled(attention), *tensors),
        }

    def head(self) -> Inputs:
        """The first rows."""
        names = ("q", "k_cache", "v_cache", "tokens")
        return Inputs(*(getattr(self, name)[:_CHECKED_ROWS] for name in names), self.ragged)


def inputs(case: str, settings: Settings) -> Inputs:
    """Random tensors of a case.

    Raises:
        ValueError: a name of another form.
    """
    found = _CASE.fullmatch(case)
    if found is None or found["dtype"] not in ("float32", "bfloat16"):
        raise ValueError(
            f"case {case!r}: expected kv_attention/B=<rows>/heads=<q>:<kv>/D=<dim>/length=<n or "
            f"1-n>/<dtype>, such as {CASES[0]}, with dtype float32 or bfloat16"
        )
    rows, heads, kv_heads, dim, length = (
        int(found[name]) for name in ("rows", "heads", "kv_heads", "dim", "length")
    )
    dtype, device = _ops.DTYPES[found["dtype"]], settings.device
    generator = torch.Generator(device).manual_seed(settings.seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    tokens = torch.full((rows,), length, device=device)
    if found["ragged"]:
        tokens = torch.randint(1, length + 1, (rows,), generator=generator, device=device)
    shape = (rows, kv_heads, length, dim)
    q, k_cache, v_cache = random(rows, 1, heads, dim), random(*shape), random(*shape)
    return Inputs(q, k_cache, v_cache, tokens.int(), bool(found["ragged"]))


def correctness(case: str, few: Inputs, rivals: Sequence[str], suite: str = SUITE) -> Iterator[Row]:
    """The op and its rivals against the reference backend with float32 queries."""
    with ardiff_kernels.backend("reference"):
        expected = Inputs(few.q.float(), few.k_cache, few.v_cache, few.tokens, few.ragged).ours()
    tolerance = _TOLERANCE[few.q.dtype] * expected.abs().clamp(min=0.1)
    yield _harness.error_row(suite, case, "reference", few.ours(), expected, tolerance)
    known = few.rivals()
    for name in rivals:
        theirs = known[name]().transpose(1, 2)
        # Some round the scores too.
        yield _harness.error_row(suite, case, name, theirs, expected, 4 * tolerance)


def run(case: str, settings: Settings) -> Iterator[Row]:
    """Correctness, then time, speedup, bandwidth and its share of a plain read's."""
    tensors = inputs(case, settings)
    rivals = settings.pick(tensors.rivals())
    with torch.inference_mode():
        yield from correctness(case, tensors.head(), tuple(rivals))
    elements, size = tensors.elements, tensors.k_cache.element_size()
    # As many bytes as both caches hold, read once.
    buffer = torch.ones(2 * tensors.k_cache.numel() * size // 4, device=settings.device)
    competitors = {_harness.OURS: tensors.ours, **rivals, _READ: buffer.sum}
    with torch.inference_mode():
        seconds = _harness.interleave(competitors, settings)
    read = [4 * buffer.numel() / s / 1e9 for s in seconds.pop(_READ)]
    yield from _harness.comparison(SUITE, case, seconds, elements, tuple(rivals))
    ours = [elements * size / s / 1e9 for s in seconds[_harness.OURS]]
    yield _harness.spread_row(SUITE, case, _harness.OURS, "bandwidth", ours, "GB/s")
    yield _harness.spread_row(SUITE, case, _READ, "bandwidth", read, "GB/s")
    share = [a / b for a, b in zip(ours, read, strict=True)]
    yield _harness.spread_row(SUITE, case, _harness.OURS, "share_of_read_bandwidth", share, "1")
