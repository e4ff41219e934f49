"""What an `AREngine` is asked for, and what it gives back."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch import Tensor

from ..guide import Guidance, number
from ..noise import MAX_PATCHES, MAX_SAMPLE_ID
from .kv_cache import CachePlan
from .patch_model import Sampled


class MadePatch(NamedTuple):
    """Patch number `index` of a request, at `place` of its sequence: values `[d]`, of an `ARModel`
    pixels in [-1, 1]."""

    request: int
    index: int
    place: int
    values: Tensor


class Finished(NamedTuple):
    """A request that is done.

    Attributes:
        request: its id.
        patches: `[n, d]`, in the order they were made; of an `ARModel` pixels in [-1, 1], to be
            viewed as `[n, C, p, p]`.
        places: where each belongs.
        stopped: whether its `stop` ended it before its last patch.
    """

    request: int
    patches: Tensor
    places: list[int]
    stopped: bool


@dataclass(eq=False)
class Request:
    """A request, and how far it has come.

    Attributes:
        prompts: tokens `[n, width]` of each stream, the conditional one first.
        sources: the stream of the context, and of each context that guidance compares with; or a
            fixed context in a stream's place.
        weights: of each of the latter, at each patch.
        steps: bound on the model calls, for each patch.
        rows: of the cache, one per stream; empty while it waits and once it is done.
        made: patches `[d]` as they are given back.
        taken: blocks of patches `[block, d]` as the encoder takes them, one per step made.
    """

    id: int
    prompts: list[Tensor]
    sources: list[int | Tensor]
    weights: list[list[float]]
    order: list[int]
    seed: int
    sample_id: int
    steps: list[int]
    temperature: float
    stop: Callable[[MadePatch], bool] | None = None
    on_patch: Callable[[MadePatch], object] | None = None
    rows: list[int] = field(default_factory=list)
    made: list[Tensor] = field(default_factory=list)
    taken: list[Tensor] = field(default_factory=list)
    done: bool = False

    @property
    def last(self) -> Tensor | None:
        """The block of patches made last."""
        return self.taken[-1] if self.taken else None

    def fork(self, id: int, seed: int, sample_id: int) -> Request:
        """A request of its own that goes on from the patches made so far."""
        own = {"rows": [], "made": self.made.copy(), "taken": self.taken.copy()}
        return replace(self, id=id, seed=seed, sample_id=sample_id, **own)

    def after(self, steps: int, block: int) -> Request:
        """The request as it was after `steps` of its steps."""
        return replace(self, made=self.made[: steps * block], taken=self.taken[:steps])

    def tokens(self, block: int) -> list[int]:
        """Tokens that each stream will have taken in at the end."""
        calls = -(-len(self.order) // block)
        return [len(prompt) + calls * block for prompt in self.prompts]

    def target(self, block: int) -> list[int]:
        """Places of the patches to be made next, `block` or fewer."""
        return self.order[len(self.made) : len(self.made) + block]

    def positions(self, block: int) -> list[list[int]]:
        """Where the tokens to be taken in next stand in the sequence of each stream."""
        done = len(self.made)
        at = [block + place for place in self.order[done - block : done]] if done else range(block)
        return [[len(prompt) + place for place in at] for prompt in self.prompts]

    def keep(self, patches: Tensor, values: Tensor) -> None:
        """Takes in a block of patches `[block or fewer, d]` that no one will change, and the values
        of them that are given back."""
        self.taken.append(patches)
        self.made += values.unbind(0)
        self.done = len(self.made) == len(self.order)

    def take(self, patches: Tensor, values: Tensor) -> list[MadePatch]:
        """Keeps copies of a block of patches and of their values, and returns other copies."""
        first = len(self.made)
        self.keep(patches.clone(), values.clone())
        return [
            MadePatch(self.id, first + i, self.order[first + i], value.clone())
            for i, value in enumerate(values)
        ]

    def stop_after(self, index: int) -> None:
        """Patch `index` was the last one."""
        del self.made[index + 1 :]
        self.done = True

    def source(self, way: int) -> int | Tensor:
        """The source of context `way` of guidance; past its own ones, the last again."""
        return self.sources[min(way, len(self.sources) - 1)]

    def weight(self, way: int, index: int) -> float:
        """Of guidance by context `way` at patch `index`."""
        return self.weights[way - 1][index] if way <= len(self.weights) else 1.0


def integer(name: str, value: int, low: int, high: int) -> int:
    """`value` as an int in [low, high); TypeError or ValueError otherwise."""
    try:
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if not low <= value < high:
        raise ValueError(f"{name} must lie in [{low}, {high}), got {value}")
    return value


def make_request(
    model: Sampled,
    id: int,
    prompt: Tensor | None,
    patches: int,
    *,
    seed: int,
    sample_id: int | None,
    steps: int,
    guidance: float | None,
    guidance_schedule: str,
    uncond: Tensor | None,
    guidance2: float | None,
    uncond2: Tensor | None,
    temperature: float,
    order: Sequence[int] | None,
    stop: Callable[[MadePatch], bool] | None,
    on_patch: Callable[[MadePatch], object] | None,
) -> Request:
    """A request with every argument checked; see :meth:`ardiff.ar.engine.AREngine.submit`."""
    patches = integer("patches", patches, 1, MAX_PATCHES)
    places = patches if model.place is None else len(model.place)
    try:
        order = list(range(patches)) if order is None else [operator.index(at) for at in order]
    except TypeError:
        raise TypeError(f"order must hold integers, got {order!r}") from None
    if len(order) != patches or len({*order} & {*range(places)}) != patches:
        raise ValueError(
            f"order must hold {patches} different places in [0, {places}), got {order}"
        )
    if model.place is None and order != sorted(order):
        raise ValueError(
            "this model makes patches in one order: for another one, train a PatchModel with places"
        )
    guided = _guidance(model, uncond, guidance, uncond2, guidance2)
    guided = guided.per_patch(guidance_schedule, patches)
    if guided.outputs == 3 and uncond is None and uncond2 is None:
        raise ValueError(
            "guidance2 weighs the difference of uncond and uncond2, which are the same where "
            "neither is given: pass at least one"
        )
    prompts, sources = [_prompt("prompt", prompt, model)], [0]
    for condition in guided.conditions:
        sources.append(condition if condition is model.null else len(prompts))
        if condition is not model.null:
            prompts.append(condition)
    return Request(
        id,
        prompts,
        sources,
        list(guided.weights),
        order,
        integer("seed", seed, -(2**63), 2**63),
        integer("sample_id", id if sample_id is None else sample_id, 0, MAX_SAMPLE_ID),
        [steps] * patches,
        number("temperature", temperature, 0.0),
        stop,
        on_patch,
    )


def forks_of(
    request: Request, n: int, first: int, seed: int | None, sample_ids: Sequence[int] | None
) -> list[Request]:
    """n forks with ids from `first` up, every argument checked; see
    :meth:`ardiff.ar.engine.AREngine.fork`."""
    n = integer("n", n, 1, MAX_SAMPLE_ID)
    ids = range(first, first + n)
    seed = request.seed if seed is None else integer("seed", seed, -(2**63), 2**63)
    given = list(ids if sample_ids is None else sample_ids)
    samples = [integer("sample_ids", sample, 0, MAX_SAMPLE_ID) for sample in given]
    taken = [request.sample_id] if seed == request.seed else []
    if len(samples) != n or len({*samples, *taken}) != n + len(taken):
        besides = f", none of them the request's own {taken[0]}" if taken else ""
        raise ValueError(
            f"sample_ids must be {n} different integers{besides}, since equal ones with one seed "
            f"draw equal patches; got {samples}"
        )
    return [request.fork(id, seed, sample) for id, sample in zip(ids, samples, strict=True)]


def _guidance(
    model: Sampled,
    uncond: Tensor | None,
    guidance: float | None,
    uncond2: Tensor | None,
    guidance2: float | None,
) -> Guidance:
    """Guidance by prompts; where none is given, by the model's null context or an empty prompt."""
    if guidance2 is not None and guidance is None:
        raise ValueError(
            "guidance2 weighs the difference of uncond and uncond2: pass guidance too, 1 for none"
        )
    own = _prompt("prompt", None, model) if model.null is None else model.null
    conditions: list[Tensor | None] = []
    for suffix, prompt, weight in (("", uncond, guidance), ("2", uncond2, guidance2)):
        if prompt is not None and weight is None:
            raise ValueError(
                f"uncond{suffix} is the prompt that guidance{suffix} compares with: pass "
                f"guidance{suffix} too"
            )
        given = own if prompt is None else _prompt(f"uncond{suffix}", prompt, model)
        conditions.append(None if weight is None else given)
    return Guidance.of(conditions[0], guidance, conditions[1], guidance2)


def check_room(request: Request, model: Sampled, plan: CachePlan) -> None:
    """Raises ValueError for a request that a cache or the encoder's positions can never hold."""
    tokens, block, config = request.tokens(model.block), model.block, model.encoder.config
    if max(tokens) > plan.capacity:
        raise ValueError(
            f"the request needs {max(tokens)} tokens, but the engine's cache holds "
            f"{plan.capacity} tokens per sequence; make a larger capacity"
        )
    blocks = sum(plan.blocks_of(n) for n in tokens)
    if len(tokens) > plan.rows or blocks > plan.blocks:
        raise ValueError(
            f"the request needs {len(tokens)} rows and {blocks} blocks, but the engine's cache has "
            f"{plan.rows} rows and {plan.blocks} blocks"
        )
    taken_in = request.order[: (len(request.order) - 1) // block * block]
    far = max(map(len, request.prompts)) + block + max(taken_in, default=-1)
    if config.position != "none" and far >= config.positions:
        raise ValueError(
            f"the request reaches position {far}, but the encoder has {config.positions} positions"
        )


def _prompt(name: str, tokens: Tensor | None, model: Sampled) -> Tensor:
    width, like = model.encoder.config.width, model.start
    if tokens is None:
        return like.new_empty(0, width)
    if not isinstance(tokens, Tensor) or tokens.dim() != 2 or tokens.shape[1] != width:
        found = list(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ValueError(f"{name} must be tokens of shape [n, {width}], got {found}")
    return tokens.detach().to(like, copy=True)
