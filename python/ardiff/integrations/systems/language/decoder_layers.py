"""Decoder layers of transformers (Qwen2, Qwen3, Llama, Mistral, Pocket-TTS) at few rows.

A layer of a language model that makes one token for each of a few samples reads its weights once
and does little else. Here such a step is four packed products, with the norms, SwiGLU and residuals
within them, and attention over a cache with room ahead. Longer prompts, and whatever gradients are
wanted of, run through the layer's own `forward`.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..packed_linears import Floats, PackedLinears, Place
from ..swaps import Choices
from .growing_cache import MOST_TOKENS, GrowingLayer, Rotary, attend

FEW = 64  # rows: above, PyTorch's own products are as fast (docs/cpu.md)
# Classes by name, since importing every model of transformers takes seconds.
KNOWN = {
    "Qwen2DecoderLayer": "swiglu",
    "Qwen3DecoderLayer": "swiglu",
    "LlamaDecoderLayer": "swiglu",
    "MistralDecoderLayer": "swiglu",
    "PocketTTSDecoderLayer": "gelu",
}
MLP = {"swiglu": ("gate_proj", "up_proj", "down_proj"), "gelu": ("fc1", "fc2")}


class Stream(NamedTuple):
    """Rows of one call that share a cache.

    Attributes:
        rows: of the call.
        cache: of transformers.
        first: the first key that each row sees, None for all.
        keep: whether the new token counts from now on.
    """

    rows: slice
    cache: Cache
    first: Sequence[int] | None = None
    keep: bool = True


class FewRows:
    """Stands in for the `forward` of one decoder layer.

    Args:
        layer: of a class in `KNOWN`.
        choices: of the parts ``linears`` and ``attention``, those to replace.
    """

    def __init__(self, layer: nn.Module, choices: Choices) -> None:
        self.layer, self.attn = layer, layer.self_attn
        self.kind = KNOWN[type(layer).__name__]
        self.attends = "attention" in choices.parts
        self.packs = "linears" in choices.parts
        self.invariant = choices.batch_invariant
        self.most = 2**31 if self.invariant else FEW
        attn, mlp, names = self.attn, layer.mlp, MLP[self.kind]
        self._qkv = [Place(attn, f"{n}_proj") for n in "qkv"]
        self._o = [Place(attn, "o_proj")]
        self._up = [Place(mlp, n) for n in names[:-1]]
        self._down = [Place(mlp, names[-1])]
        self.linears: list[PackedLinears] = []
        if self.packs:
            groups = (self._qkv, self._o, self._up, self._down)
            self.linears = [PackedLinears(group, choices.weights) for group in groups]
        self._norms = {name: Floats() for name in (0, 2, "q_norm", "k_norm")}
        self._read = False
        self._seen: weakref.WeakSet[Cache] = weakref.WeakSet()
        own = {
            place.name for group in (self._qkv, self._o, self._up, self._down) for place in group
        }
        self._children = [
            (m._modules, name, child)
            for m in layer.modules()
            for name, child in m._modules.items()
            if name not in own
        ]
        self._hooks = [
            held
            for m in layer.modules()
            if m is not layer
            for held in (m._forward_hooks, m._forward_pre_hooks)
        ]

    @property
    def memory_bytes(self) -> int:
        return sum(linear.memory_bytes for linear in self.linears)

    def ready(self) -> bool:
        """Whether nothing within the layer asks for its own `forward`, such as a later hook."""
        if any(self._hooks) or any(linear.unfit() for linear in self.linears):
            return False
        return all(held.get(name) is child for held, name, child in self._children)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """As the layer's own, `[B, T, width]` to the same."""
        stock = type(self.layer).forward
        given = {
            "attention_mask": attention_mask, "position_ids": position_ids,
            "past_key_values": past_key_values, "use_cache": use_cache,
            "position_embeddings": position_embeddings,
        }  # fmt: skip
        held = None
        if self.attends and past_key_values is not None and self.plain_attention():
            held = GrowingLayer.take_over(past_key_values, self.attn.layer_idx)
        self._begin(past_key_values)
        if not self._serves(hidden_states, position_embeddings, past_key_values):
            return stock(self.layer, hidden_states, **given, **kwargs)
        self.refresh()
        batch, tokens, width = hidden_states.shape
        x = hidden_states.reshape(batch * tokens, width)
        q, k, v = (t.unflatten(0, (batch, tokens)) for t in self.project(x))
        first: tuple[int, ...] | None = ()
        if held is not None and tokens == 1:
            first = first_keys(attention_mask)
        elif held is not None and self.invariant and attention_mask is None:
            first = None
        if first != ():
            rotary = rotary_of(position_embeddings, batch)
            parts = [slice(at, at + MOST_TOKENS) for at in range(0, tokens, MOST_TOKENS)]
            found = torch.cat(
                [
                    self._attend(
                        q[:, part], k[:, part], v[:, part], held, rotary.tokens(part), first, True
                    )
                    for part in parts
                ],
                1,
            )
        else:
            found = self._stock_attention(
                q, k, v, attention_mask, past_key_values, position_embeddings, kwargs
            )
        return self.close(x, found.reshape(batch * tokens, -1)).view(batch, tokens, width)

    def _begin(self, cache: Cache | None) -> None:
        """Has the weights' bits read at the next few rows, for a cache that was not seen before or
        is empty, and for none."""
        if (
            cache is None
            or cache not in self._seen
            or not cache.get_seq_length(self.attn.layer_idx)
        ):
            self._read = True
        if cache is not None:
            self._seen.add(cache)

    def plain_attention(self) -> bool:
        """Whether the model is set to an attention of transformers that is softmax(q k) v."""
        kind = str(self.attn.config._attn_implementation)
        return kind in ("eager", "sdpa") or kind.startswith("flash_attention")

    def refresh(self) -> None:
        """Packs anew what was replaced or written to."""
        for linear in self.linears:
            linear.refresh(read=self._read)
        if self._read:
            for kept in self._norms.values():
                kept.forget()
        self._read = False

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy, which has seen no cache."""
        return {**vars(self), "_seen": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _seen=weakref.WeakSet())

    def _serves(self, x: Tensor, position_embeddings: Any, cache: Cache | None) -> bool:
        few = x.dim() == 3 and 0 < x.shape[0] * x.shape[1] <= self.most
        known = x.dtype in (torch.float32, torch.bfloat16) and position_embeddings is not None
        if not (few and known and self.ready()):
            return False
        if torch.is_grad_enabled() and (
            x.requires_grad or _wants_gradients(self.layer) or learns(cache, self.attn.layer_idx)
        ):
            return False
        busy = torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type)
        return not (busy or (self.layer.training and self.attn.attention_dropout))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries `[N, Hq, D]`, keys and values `[N, Hkv, D]` of `[N, width]`, not rotated."""
        dim = self.attn.head_dim
        qkv = self._linear(0, x, self._qkv, self.layer.input_layernorm).unflatten(-1, (-1, dim))
        kv_heads = (self._qkv[1].get().out_features) // dim
        return qkv.split([qkv.shape[1] - 2 * kv_heads, kv_heads, kv_heads], 1)

    def step(self, x: Tensor, streams: Sequence[Stream], rotary: Rotary) -> Tensor:
        """One token for each row of several streams: `[N, width]` to the same."""
        q, k, v = (t[:, None] for t in self.project(x))
        found = []
        for stream in streams:
            held = GrowingLayer.take_over(stream.cache, self.attn.layer_idx)
            own = (t[stream.rows] for t in (q, k, v))
            turn = rotary.rows(stream.rows)
            found.append(self._attend(*own, held, turn, stream.first, stream.keep))
        return self.close(x, torch.cat(found).flatten(1))

    def close(self, x: Tensor, attended: Tensor) -> Tensor:
        """What follows attention: `[N, width]` and `[N, Hq D]` to `[N, width]`."""
        x = self._linear(1, attended, self._o, residual=x)
        norm = self.layer.post_attention_layernorm
        if self.kind == "swiglu":
            hidden = self._linear(2, x, self._up, norm, swiglu=True)
        else:
            hidden = self.layer.mlp.activation_fn(self._linear(2, x, self._up, norm))
        return self._linear(3, hidden, self._down, residual=x)

    def _linear(
        self,
        group: int,
        x: Tensor,
        places: Sequence[Place],
        norm: nn.Module | None = None,
        residual: Tensor | None = None,
        swiglu: bool = False,
    ) -> Tensor:
        if not self.packs:
            return _plain(x, [place.get() for place in places], norm, residual, swiglu)
        options: dict[str, Any] = {"residual": residual}
        if isinstance(norm, nn.LayerNorm):
            x = norm(x)
        elif norm is not None:
            weight = self._norms[group].of(norm.weight)
            options |= {"norm": weight, "eps": norm.variance_epsilon}
        if swiglu:
            options["activation"] = "swiglu"
        return self.linears[group](x, **options)

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        held: GrowingLayer,
        rotary: Rotary,
        first: Sequence[int] | None,
        keep: bool,
    ) -> Tensor:
        norms, eps = (None, None), 1e-6
        if hasattr(self.attn, "q_norm"):
            names = ("q_norm", "k_norm")
            norms = tuple(self._norms[n].of(getattr(self.attn, n).weight) for n in names)
            eps = self.attn.q_norm.variance_epsilon
        return attend(
            q, k, v, held, rotary, first,
            scale=self.attn.scaling, norms=norms, norm_eps=eps, keep=keep,
        )  # fmt: skip

    def _stock_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        cache: Cache | None,
        position_embeddings: tuple[Tensor, Tensor],
        kwargs: dict[str, Any],
    ) -> Tensor:
        """Of `[B, T, H, D]`, by the attention that the model was set to use."""
        attn = self.attn
        if hasattr(attn, "q_norm"):
            q, k = attn.q_norm(q), attn.k_norm(k)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        q, k = _rotate(q, position_embeddings), _rotate(k, position_embeddings)
        if cache is not None:
            k, v = cache.update(k, v, attn.layer_idx)
        eager = sys.modules[type(attn).__module__].eager_attention_forward
        kind = attn.config._attn_implementation
        run = ALL_ATTENTION_FUNCTIONS.get_interface(kind, eager)
        window = getattr(attn, "sliding_window", None)
        own = {} if window is None else {"sliding_window": window}
        return run(attn, q, k, v, mask, dropout=0.0, scaling=attn.scaling, **own, **kwargs)[0]


def _plain(
    x: Tensor,
    layers: Sequence[nn.Module],
    norm: nn.Module | None,
    residual: Tensor | None,
    swiglu: bool,
) -> Tensor:
    """What a packed product computes, by the modules themselves."""
    x = x if norm is None else norm(x)
    parts = [layer(x) for layer in layers]
    found = F.silu(parts[0]) * parts[1] if swiglu else torch.cat(parts, -1)
    return found if residual is None else residual + found


def _rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """x `[B, H, T, D]` by cos and sin `[B or 1, T, D]`."""
    cos, sin = (t[:, None] for t in tables)
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def _wants_gradients(layer: nn.Module) -> bool:
    return any(p.requires_grad for p in layer.parameters())


def learns(cache: Cache | None, index: int) -> bool:
    """Whether a layer of a cache holds keys or values that gradients are wanted of."""
    layers = getattr(cache, "layers", None) or []
    held = layers[index] if index < len(layers) else None
    own = (getattr(held, "keys", None), getattr(held, "values", None))
    return any(isinstance(t, Tensor) and t.requires_grad for t in own)


_last: tuple[Any, Any, int, Any] = (None, None, 0, None)  # one entry: of the step that runs


def rotary_of(tables: tuple[Tensor, Tensor], batch: int) -> Rotary:
    """`Rotary.of`, made once for all layers of a step."""
    global _last
    cos, sin, rows, made = _last
    if cos is not tables[0] or sin is not tables[1] or rows != batch:
        made = Rotary.of(*tables, batch)
        _last = (*tables, batch, made)
    return made


_mask: tuple[Any, int, Any] = (None, 0, None)


def first_keys(mask: Tensor | None) -> tuple[int, ...] | None:
    """The first key that each row of a mask `[B, 1, 1, K]` sees; None where all rows see all keys,
    empty where a row sees another set than the last so many."""
    global _mask
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() != 4 or mask.shape[1] != 1:
        return ()
    last, version, found = _mask
    if last is mask and version == _version(mask):
        return found
    sees = mask if mask.dtype == torch.bool else mask == 0
    lowest = None if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    hard = lowest is None or bool((sees | (mask <= lowest)).all())  # no bias in between
    found = runs(sees[:, 0, -1]) if hard else ()
    _mask = (mask, _version(mask), found)
    return found


def _version(t: Tensor) -> int:
    return 0 if t.is_inference() else t._version


def runs(sees: Tensor) -> tuple[int, ...] | None:
    """As :func:`first_keys`, of bool `[B, K]`."""
    if bool(sees.all()):
        return None
    first = sees.int().argmax(1)
    whole = sees.sum(1) == sees.shape[1] - first
    return tuple(first.tolist()) if bool((whole & sees[:, -1]).all()) else ()
