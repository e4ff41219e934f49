"""The streaming transformer of the package pocket-tts, over the package's own state.

Its layers (LayerNorm, attention with rotary pairs, tanh-GELU, optional layer scale, no biases) run
at few rows: one new frame of the language model, 16 steps of the codec. A step is then four packed
products a layer, and attention over the cache that the state holds: keys and values of a position
stand in one row of it, which `kv_attention` reads as a block of one token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ardiff_kernels import ops

from ..._tree import Tree
from ..packed_linears import Floats, PackedLinears, Place
from ..swaps import Choices, why_not

_MOST = 64  # queries of a call of kv_attention
_LINEARS = ("self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2")
State = dict[str, dict[str, Tensor]]


class Streams:
    """Tells the first call on a state, by a tensor that the state keeps while it is in use."""

    def __init__(self) -> None:
        self._last: Any = None

    def begins(self, kept: Tensor) -> bool:
        if self._last is not None and self._last() is kept:
            return False
        self._last = ref(kept)
        return True


class PackageTransformer:
    """Stands in for the `forward` of one StreamingTransformer.

    Args:
        module: the transformer.
        choices: of the dtype of packed weights.
        linears, attention: whether each is replaced.
    """

    def __init__(
        self, module: nn.Module, choices: Choices, *, linears: bool, attention: bool
    ) -> None:
        self.module, self.attends = module, attention
        self.layers = [_Layer(layer, choices, linears) for layer in module.layers]
        self._streams, self._tree = Streams(), Tree(module)

    @property
    def memory_bytes(self) -> int:
        return sum(linear.memory_bytes for layer in self.layers for linear in layer.packed)

    def forward(self, x: Tensor, model_state: State | None) -> Tensor:
        """As the module's own: `[B, T, width]` to the same."""
        stock = type(self.module).forward
        if not self._serves(x, model_state):
            return stock(self.module, x, model_state)
        states = [layer.attn.get_state(model_state) for layer in self.layers]
        offsets = [_offset(state) for state in states]
        if None in offsets:
            return stock(self.module, x, model_state)
        if self._streams.begins(states[0]["offset"]) or not self._tree.same():
            for layer in self.layers:
                layer.refresh(read=True)
            self._tree.look()
        batch, tokens, width = x.shape
        rows = x.reshape(batch * tokens, width).contiguous()
        turns: dict[int, Tensor] = {}
        context = self.module.context
        for layer, state, offset in zip(self.layers, states, offsets, strict=True):
            if offset not in turns:
                turns[offset] = _turns(layer.attn, offset, tokens)
            q, k, v = layer.project(rows, batch, turns[offset])
            _append(state["cache"], offset, k, v)
            if self.attends:
                found = _attend(q, state["cache"], offset, context or 0)
            else:
                found = _stock_attention(q, state["cache"], offset, context)
            rows = layer.close(rows, found.reshape(batch * tokens, -1))
        return rows.view(batch, tokens, width)

    def _serves(self, x: Tensor, state: State | None) -> bool:
        if state is None or not x.numel() or x.dtype != torch.float32 or not x.is_cpu:
            return False
        if torch.is_grad_enabled() and x.requires_grad:
            return False
        if self._tree.hooked() or self._tree.wants_gradients():
            return False
        if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
            return False
        return not self._tree.replaced() or all(layer.fits() for layer in self.layers)


class _Layer:
    def __init__(self, layer: nn.Module, choices: Choices, linears: bool) -> None:
        self.layer, self.attn = layer, layer.self_attn
        attn = layer.self_attn
        self._places = [
            Place(attn, "in_proj"), Place(attn, "out_proj"), Place(layer, "linear1"),
            Place(layer, "linear2"),
        ]  # fmt: skip
        self.packed: list[PackedLinears] = []
        if linears:
            self.packed = [PackedLinears([place], choices.weights) for place in self._places]
        self._scales = Floats(), Floats()

    def fits(self) -> bool:
        """Whether what hangs in the layer now is what was known of it."""
        return not any(packed.unfit() for packed in self.packed)

    def refresh(self, read: bool) -> None:
        for packed in self.packed:
            packed.refresh(read=read)

    def project(self, x: Tensor, batch: int, turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries `[B, T, H, D]`, keys and values `[B, T, Hkv, D]` of `[B T, width]`; queries and
        keys are rotated."""
        attn = self.attn
        dim, kv = attn.dim_per_head, attn.num_kv_heads
        qkv = self._linear(0, _normed(x, self.layer.norm1)).view(
            batch, -1, attn.num_heads + 2 * kv, dim
        )
        turned = torch.view_as_complex(qkv[:, :, :-kv].unflatten(-1, (-1, 2))) * turns
        q, k = torch.view_as_real(turned).flatten(-2).split([attn.num_heads, kv], 2)
        return q, k, qkv[:, :, -kv:]

    def close(self, x: Tensor, attended: Tensor) -> Tensor:
        """What follows attention: `[N, width]` and `[N, H D]` to `[N, width]`."""
        layer = self.layer
        x = self._linear(1, attended, x, self._scale(0, layer.layer_scale_1))
        hidden = F.gelu(self._linear(2, _normed(x, layer.norm2)), approximate="tanh")
        return self._linear(3, hidden, x, self._scale(1, layer.layer_scale_2))

    def _scale(self, which: int, module: nn.Module) -> Tensor | None:
        scale = getattr(module, "scale", None)
        return None if scale is None else self._scales[which].of(scale)[None]

    def _linear(
        self, which: int, x: Tensor, residual: Tensor | None = None, gate: Tensor | None = None
    ) -> Tensor:
        if self.packed:
            return self.packed[which](x, residual=residual, gate=gate)
        found = self._places[which].get()(x)
        found = found if gate is None else gate * found
        return found if residual is None else residual + found


def _normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _offset(state: dict[str, Tensor]) -> int | None:
    """How many positions the cache holds; None where rows differ or begin with padding."""
    pad, offset = state.get("pad"), state["offset"]
    cache = state["cache"]
    if pad is not None and bool(pad.any()):
        return None
    if cache.dtype != torch.float32 or not cache.is_contiguous():
        return None
    held = offset.tolist()
    return held[0] if held.count(held[0]) == len(held) else None


def _turns(attn: nn.Module, offset: int, tokens: int) -> Tensor:
    """Rotations complex64 `[T, 1, D / 2]` of positions from `offset` up, as the package has them
    (Su et al. 2021): dimensions 2 i and 2 i + 1 are a pair."""
    rates = _rates(attn.dim_per_head // 2, attn.rope.max_period)
    angles = torch.arange(offset, offset + tokens, dtype=torch.float32)[:, None] * rates
    return torch.complex(angles.cos(), angles.sin())[:, None]


@lru_cache(maxsize=16)
def _rates(half: int, max_period: float) -> Tensor:
    with torch.inference_mode(False):
        index = torch.arange(half, dtype=torch.float32)
        return torch.exp(index * (-math.log(max_period) / half))


def _append(cache: Tensor, offset: int, k: Tensor, v: Tensor) -> None:
    """Writes `[B, T, Hkv, D]` behind `offset` into `[2, B, S, Hkv, D]`."""
    end = offset + k.shape[1]
    if end > cache.shape[2]:
        raise RuntimeError(
            f"the cache of this state has room for {cache.shape[2]} positions, and {end} are "
            "needed; make the state with a longer sequence_length"
        )
    cache[0, :, offset:end] = k
    cache[1, :, offset:end] = v


def _attend(q: Tensor, cache: Tensor, offset: int, context: int) -> Tensor:
    """`[B, T, H, D]`: attention of the newest T positions."""
    _, batch, size, heads, dim = cache.shape
    blocks = cache.view(2, batch * size, heads, 1, dim)
    table = _blocks(batch, size)
    parts = [
        ops.kv_attention(
            part, blocks[0], blocks[1], _lengths(offset + i * _MOST, batch),
            block_table=table, window=context,
        )
        for i, part in enumerate(q.split(_MOST, 1))
    ]  # fmt: skip
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


@lru_cache(maxsize=16)
def _lengths(length: int, batch: int) -> Tensor:
    with torch.inference_mode(False):
        return torch.full((batch,), length, dtype=torch.int32)


@lru_cache(maxsize=16)
def _blocks(batch: int, size: int) -> Tensor:
    with torch.inference_mode(False):
        return torch.arange(batch * size, dtype=torch.int32).view(batch, size)


def _stock_attention(q: Tensor, cache: Tensor, offset: int, context: int | None) -> Tensor:
    heads, end = q.shape[2], offset + q.shape[1]
    k, v = (t.transpose(1, 2) for t in cache[:, :, :end])
    shared = heads // k.shape[1]
    if shared > 1:
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    behind = torch.arange(offset, end)[:, None] - torch.arange(end)
    sees = behind >= 0
    if context is not None:
        sees &= behind < context
    found = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, sees)
    return found.transpose(1, 2)


def linears_of(module: nn.Module) -> list[nn.Module]:
    return [layer.get_submodule(name) for layer in module.layers for name in _LINEARS]


def why_not_transformer(module: nn.Module) -> str:
    """Why a StreamingTransformer cannot be followed; empty if it can."""
    reason = why_not(module, linears_of(module))
    if reason:
        return reason
    weight = next(module.parameters())
    if not weight.is_cpu or weight.dtype != torch.float32:
        return f"weights are {str(weight.dtype)[6:]} on {weight.device}, expected float32 on a CPU"
    for layer in module.layers:
        attn = layer.self_attn
        if attn.dim_per_head % 8 or not 32 <= attn.dim_per_head <= 256:
            channels = attn.dim_per_head
            return f"heads have {channels} channels, expected a multiple of 8 from 32 to 256"
        if any(linear.bias is not None for linear in _own_linears(layer)):
            return "linear layers have biases, expected none"
        for norm in (layer.norm1, layer.norm2):
            if type(norm) is not nn.LayerNorm:
                return f"a {type(norm).__name__} stands where a torch.nn.LayerNorm is expected"
        for scale in (layer.layer_scale_1, layer.layer_scale_2):
            if not isinstance(scale, nn.Identity) and type(scale).__name__ != "LayerScale":
                return f"a {type(scale).__name__} stands where a LayerScale is expected"
    return ""


def _own_linears(layer: nn.Module) -> Sequence[nn.Module]:
    return [layer.get_submodule(name) for name in _LINEARS]
