"""Streams of one language model, such as those of guidance, computed in one pass over its weights.

A loop of transformers asks the model for each stream in turn: the conditional one, then those that
guidance compares with. At one token per stream each of these passes reads all weights. The inputs
of the later ones are as good as known when the first is asked for: the same embedding, or the one
of the step before. So the first call computes all of them, and a later call whose inputs are
what was expected, to the bit, gets what is ready. One whose inputs are others runs as it always
did, and its stream is not computed ahead again until it has been foreseen once more.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

from ....heads.packing import hooked
from ..packed_linears import PackedLinears
from .decoder_layers import FEW, FewRows, Stream, learns, runs
from .growing_cache import GrowingLayer, Rotary

_KNOWN = {
    "input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds", "use_cache",
    "return_dict",
}  # fmt: skip
_MOST = 4  # streams that are followed


@dataclass
class _Call:
    """A call for one new token per row.

    Attributes:
        cache_ref: the cache, which is freed when its owner lets it go.
        x: embeddings `[B, 1, width]`.
        mask: `[B, n + 1]` or None, as it was given.
        position: int64 `[B or 1, 1]`.
        held: tokens of the cache before it.
    """

    cache_ref: weakref.ref
    x: Tensor
    mask: Tensor | None
    position: Tensor
    held: int

    @property
    def cache(self) -> Cache | None:
        return self.cache_ref()

    def same(self, other: _Call) -> bool:
        return (
            _equal(self.x, other.x)
            and _equal(self.position, other.position)
            and _equal(self.mask, other.mask)
        )

    def next(self, x: Tensor) -> _Call:
        """The call of the next step, if its embeddings are `x`."""
        mask = self.mask
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        return _Call(self.cache_ref, x, mask, self.position + 1, self.held + 1)


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a is b or (a.dtype == b.dtype and torch.equal(a, b))


class _Follower:
    """A stream that is called after the first one.

    Attributes:
        last: its last call.
        as_first: whether its embeddings were those of the first stream's call.
        foreseen: whether its last call was what would have been expected.
        ready: the call that was computed ahead, its hidden states `[B, 1, width]`, and the state of
            the cache for which they hold.
    """

    def __init__(self, call: _Call, as_first: bool) -> None:
        self.last, self.as_first, self.foreseen = call, as_first, True
        self.ready: tuple[_Call, Tensor, list] | None = None

    def expected(self, first: _Call) -> _Call | None:
        x = first.x if self.as_first else self.last.x
        cache = self.last.cache
        if cache is None or x.shape != self.last.x.shape:
            return None
        whole = all(
            isinstance(layer, GrowingLayer)
            and layer.held == self.last.held + 1
            and len(layer.keys) == len(x)
            for layer in cache.layers
        )
        return self.last.next(x) if whole else None


class _State(threading.local):
    """What one thread's generation has called so far.

    Attributes:
        first: the cache of the first stream, that of the prompt.
        called: its last call.
        followers: the other streams.
        logits: hidden states that were computed ahead, and their logits.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.first: weakref.ref | None = None
        self.called: _Call | None = None
        self.followers: list[_Follower] = []
        self.logits: list[tuple[Tensor, Tensor]] = []


class Streams:
    """Stands in for the `forward` of a language model whose layers are all ours.

    Args:
        model: with `layers`, `norm`, `rotary_emb` and `embed_tokens`, as `Qwen2Model`.
        layers: what stands in for each of its layers.

    Attributes:
        together: calls that were answered from another call's pass, for the report.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[FewRows], logits: PackedLinears | None = None
    ) -> None:
        self.model, self.layers, self._to_logits = model, list(layers), logits
        self._head = None if logits is None else logits.layers[0]
        self._read = False
        self._seen: weakref.WeakSet[Cache] = weakref.WeakSet()
        kind = str(getattr(model.rotary_emb, "rope_type", "default"))
        self._joins = "dynamic" not in kind and kind != "longrope"  # tables of each call's length
        self.together = 0
        self._run_state = _State()

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy, which has seen no call."""
        return {**vars(self), "_run_state": None, "_seen": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _run_state=_State(), _seen=weakref.WeakSet())

    def logits(self, x: Tensor) -> Tensor:
        """In place of the `forward` of the model's `lm_head`: `[B, T, width]` to `[B, T, V]`. Those
        of hidden states that were computed ahead are computed with the first ones."""
        layer, state = self._head, self._run_state
        few = x.dim() == 3 and 0 < len(x) * x.shape[1] <= FEW
        if not few or self._to_logits.unfit() or not self._plain(x, layer):
            return nn.Linear.forward(layer, x)
        for hidden, found in state.logits:
            if _equal(hidden, x):
                return found
        ahead = [f.ready[1] for f in state.followers if f.ready is not None]
        ahead = [hidden for hidden in ahead if hidden.shape[1:] == x.shape[1:]]
        self._to_logits.refresh(read=self._read)
        self._read = False
        rows = torch.cat([x, *ahead]).flatten(0, 1)
        found = self._to_logits(rows).unflatten(0, (-1, x.shape[1]))
        found = found.split([len(hidden) for hidden in (x, *ahead)])
        state.logits = list(zip(ahead, found[1:], strict=True))
        return found[0]

    def forward(self, input_ids: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the model's own."""
        stock, state = type(self.model).forward, self._run_state
        if args:
            return stock(self.model, input_ids, *args, **kwargs)
        cache, x = kwargs.get("past_key_values"), kwargs.get("inputs_embeds")
        if x is None and input_ids is not None:
            x = self.model.embed_tokens(input_ids)
            kwargs, input_ids = kwargs | {"inputs_embeds": x}, None
        if cache is None or cache not in self._seen:
            self._read = True  # the logits' weights too, where a generation begins
            if isinstance(cache, Cache):
                self._seen.add(cache)
        found = self._of_few(x, cache, kwargs)
        if found is not None:
            return found
        if cache is None or not cache.get_seq_length():
            if x is not None and x.shape[1] > 1:  # a prompt: what was before is over
                state.forget()
                state.first = None if cache is None else weakref.ref(cache)
        return stock(self.model, input_ids, **kwargs)

    def _of_few(self, x: Tensor | None, cache: Any, kwargs: dict[str, Any]) -> Any:
        known = set(kwargs) <= _KNOWN and kwargs.get("use_cache") is not False
        if x is None or x.shape[1] != 1 or not (known and kwargs.get("return_dict", True)):
            return None
        mask = kwargs.get("attention_mask")
        plain = mask is None or (isinstance(mask, Tensor) and mask.dim() == 2)
        if not (isinstance(cache, Cache) and plain):
            return None
        held = cache.get_seq_length()
        if not held or (mask is not None and mask.shape[1] != held + 1):
            return None
        position = kwargs.get("position_ids")
        if position is None:
            position = torch.full((1, 1), held, device=x.device)
        own = [None if t is None else t.clone() for t in (x, mask, position)]
        call = _Call(weakref.ref(cache), *own, held)
        hidden = self._hidden(call)
        return None if hidden is None else BaseModelOutputWithPast(hidden, cache)

    def _hidden(self, call: _Call) -> Tensor | None:
        """Hidden states `[B, 1, width]`; None where the model's own pass is to run."""
        state = self._run_state
        first = state.called
        leader = state.first() if state.first is not None else None
        if leader is None:
            state.first, leader = call.cache_ref, call.cache
        if call.cache is leader:
            follow = [
                (f, wanted)
                for f in state.followers
                if self._joins and f.foreseen and (wanted := f.expected(call)) is not None
            ]
            found = self._run([call, *(wanted for _, wanted in follow)])
            if found is None:
                state.forget()
                return None
            for f in state.followers:
                f.ready = None
            for (f, wanted), hidden in zip(follow, found[1:], strict=True):
                f.ready = (wanted, hidden, _state_of(wanted.cache))
            state.called = call
            return found[0]
        known = next((f for f in state.followers if f.last.cache is call.cache), None)
        if known is None:
            found = self._run([call])
            if found is not None and first is not None and len(state.followers) < _MOST:
                state.followers.append(_Follower(call, _equal(call.x, first.x)))
            return None if found is None else found[0]
        wanted = None if first is None else known.expected(first)
        ready, known.ready = known.ready, None
        known.foreseen = wanted is not None and wanted.same(call)
        if first is not None:
            known.as_first = _equal(call.x, first.x)
        known.last = call
        if ready is not None and ready[0].same(call) and _still(ready[2], call.cache):
            for layer in call.cache.layers:
                layer.held += 1
            self.together += 1
            return ready[1]
        found = self._run([call])
        return None if found is None else found[0]

    def _run(self, calls: Sequence[_Call]) -> list[Tensor] | None:
        """One pass for all calls. The tokens of all but the first are written but do not count yet;
        None where a layer or a cache is not ours to run."""
        x = torch.cat([call.x for call in calls])[:, 0]
        if not self._serves(x, calls):
            return None
        with torch.no_grad():
            return self._pass(x, calls)

    def _pass(self, x: Tensor, calls: Sequence[_Call]) -> list[Tensor] | None:
        streams, at = [], 0
        for number, call in enumerate(calls):
            first = None if call.mask is None else runs(call.mask.bool())
            if first == ():
                return None
            rows = slice(at, at + len(call.x))
            streams.append(Stream(rows, call.cache, first, keep=number == 0))
            at = rows.stop
        position = torch.cat([c.position.expand(len(c.x), 1) for c in calls])
        tables = self.model.rotary_emb(x[:, None], position)
        rotary = Rotary.of(*tables, len(x))
        for layer in self.layers:
            layer.refresh()
            x = layer.step(x, streams, rotary)
        hidden = self.model.norm(x)[:, None]
        return list(hidden.split([len(call.x) for call in calls]))

    def _serves(self, x: Tensor, calls: Sequence[_Call]) -> bool:
        few = len(x) <= max(FEW, *(layer.most for layer in self.layers))
        if not few or not self._plain(x, self.model):
            return False
        own = self.model.layers[: self.model.config.num_hidden_layers]
        if [layer.layer for layer in self.layers] != list(own):
            return False
        for index, layer in enumerate(self.layers):
            set_now = vars(layer.layer).get("forward")
            ours = getattr(set_now, "__wrapped__", set_now) == layer.forward  # a profile wraps it
            if not (ours and layer.ready() and layer.plain_attention()) or hooked(layer.layer):
                return False
            if any(GrowingLayer.take_over(call.cache, index) is None for call in calls):
                return False
            if torch.is_grad_enabled() and any(learns(call.cache, index) for call in calls):
                return False
        return True

    @staticmethod
    def _plain(x: Tensor, module: nn.Module) -> bool:
        """Whether a module's result is that of its weights in eval mode, in a dtype of ours."""
        if x.dtype not in (torch.float32, torch.bfloat16) or module.training:
            return False
        if torch.is_grad_enabled() and (
            x.requires_grad or any(p.requires_grad for p in module.parameters())
        ):
            return False
        return not (torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type))


def _state_of(cache: Cache) -> list:
    """What of a cache tells that it has not changed: its buffers, how many tokens they hold, and
    the last of these."""
    return [
        (layer._keys, layer._values, layer.held, layer.keys[:, :, -1].clone())
        for layer in cache.layers
    ]


def _still(state: list, cache: Cache) -> bool:
    now = cache.layers
    return len(now) == len(state) and all(
        isinstance(layer, GrowingLayer)
        and layer._keys is keys
        and layer._values is values
        and layer.held == held
        and torch.equal(layer.keys[:, :, -1], last)
        for layer, (keys, values, held, last) in zip(now, state, strict=True)
    )
