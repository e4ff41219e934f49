"""How a request begins: what it has in common with others is shared, what is left is taken in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from .kv_cache import CachePlan, KVCache
from .patch_model import Sampled
from .requests import Request
from .step import contexts


class Prompts:
    """Gives equal prompts as one tensor, for as long as a request has it."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[tuple[int, int], Tensor] = WeakValueDictionary()

    def one(self, tokens: Tensor) -> Tensor:
        """`tokens` `[n, width]`, float32 or bfloat16, or the tensor of the same bits given before.

        It reads the tokens, so on a GPU it waits for them.
        """
        tokens = tokens.contiguous()
        mark = len(tokens), int(_bits(tokens).sum(dtype=torch.int64))
        known = self._known.get(mark)
        if known is not None and torch.equal(_bits(known), _bits(tokens)):
            return known
        self._known[mark] = tokens
        return tokens


def _bits(tokens: Tensor) -> Tensor:
    return tokens.view(torch.int16)


@dataclass(frozen=True)
class Beginning:
    """Where the first tokens of a request come from.

    Attributes:
        request: that is to be admitted.
        steps: whose tokens the sources hold; those of its later steps are taken in anew.
        sources: for each stream a cache row that holds its prompt and the tokens of `steps` steps,
            or None where there is none: `steps` is then 0.
        blocks: of the cache that the request needs besides those it shares.
    """

    request: Request
    steps: int
    sources: list[int | None]
    blocks: int


def beginning_of(
    request: Request, others: Sequence[Request], plan: CachePlan, block: int
) -> Beginning:
    """How `request` begins beside `others`, which have cache rows.

    Streams with the same prompt tensor share it; those of forks share the steps that both have
    made too.
    """
    found = [_source(request, prompt, others) for prompt in request.prompts]
    steps = min(steps for _, steps in found)
    sources = [row for row, _ in found]
    blocks = 0
    for prompt, row, tokens in zip(request.prompts, sources, request.tokens(block), strict=True):
        shared = 0 if row is None else (len(prompt) + steps * block) // plan.block_size
        blocks += plan.blocks_of(tokens) - shared
    return Beginning(request, steps, sources, blocks)


def _source(request: Request, prompt: Tensor, others: Sequence[Request]) -> tuple[int | None, int]:
    """The row that has most in common with a stream of `request`, and how many steps."""
    found: tuple[int | None, int] = (None, 0)
    for other in others:
        rows = [r for r, p in zip(other.rows, other.prompts, strict=True) if p is prompt]
        if rows:
            steps = _common_steps(request, other)
            if found[0] is None or steps > found[1]:
                found = rows[0], steps
    return found


def _common_steps(a: Request, b: Request) -> int:
    """The first steps of both that are the same ones, made before one was forked off the other."""
    pairs = zip(a.taken, b.taken, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] is pair[1], pairs))


def take_in(model: Sampled, cache: KVCache, begun: Sequence[Beginning]) -> None:
    """Brings the rows of admitted requests to where the requests are, and reserves all blocks that
    they will need. A source may be a row of an earlier one."""
    _prefill(
        model,
        cache,
        [
            (row, prompt)
            for each in begun
            for row, prompt, source in _streams(each)
            if source is None and len(prompt)
        ],
    )
    block = model.block
    for each in begun:
        request = each.request
        for row, prompt, source in _streams(each):
            if source is not None:
                cache.fork(source, [row], len(prompt) + each.steps * block)
        for step in range(each.steps, len(request.taken)):
            contexts(model, cache, [request.after(step, block)])
    requests = [each.request for each in begun]
    rows = [row for request in requests for row in request.rows]
    cache.reserve(rows, [tokens for request in requests for tokens in request.tokens(block)])


def _streams(each: Beginning) -> zip[tuple[int, Tensor, int | None]]:
    return zip(each.request.rows, each.request.prompts, each.sources, strict=True)


def _prefill(model: Sampled, cache: KVCache, streams: list[tuple[int, Tensor]]) -> None:
    """Takes in the prompts of rows, in one call of the encoder."""
    if streams:
        rows, prompts = zip(*streams, strict=True)
        tokens = torch.nn.utils.rnn.pad_sequence(list(prompts), batch_first=True)
        model.encoder.prefill(tokens, cache, rows, [len(prompt) for prompt in prompts])
