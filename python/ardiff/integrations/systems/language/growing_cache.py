"""A layer of transformers' dynamic KV cache with room ahead, and attention over it.

`DynamicLayer` joins the whole cache and the new token at every step. This one writes behind what it
holds, and doubles when it is full. What it shows as `keys` and `values` are views of it, so that
all that transformers does with a cache, stock attention included, works on it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from ardiff_kernels import ops

ROOM = 256  # tokens that a cache has room for ahead, at least
MOST_TOKENS = 64  # of a row in one call of kv_attention


class GrowingLayer(DynamicLayer):
    """Keys and values `[B, Hkv, n, D]` of n tokens within buffers `[B, Hkv, S, D]`, S >= n."""

    def __init__(self) -> None:
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self.held = 0  # tokens
        super().__init__()

    @classmethod
    def take_over(cls, cache: Any, index: int) -> GrowingLayer | None:
        """Layer `index` of a cache as one of these, which takes a stock layer's place; None for a
        cache of another kind."""
        layers = getattr(cache, "layers", None)
        own_update = "update" in vars(cache) or type(cache).update is not Cache.update
        if layers is None or getattr(cache, "offloading", False) or own_update:
            return None
        if index >= len(layers):
            grow = getattr(cache, "layer_class_to_replicate", None)
            if grow is not DynamicLayer or index > len(layers):
                return None
            layers.append(cls())
        layer = layers[index]
        if type(layer) is DynamicLayer:
            fresh = cls()
            if layer.is_initialized and layer.keys.numel():
                fresh.lazy_initialization(layer.keys, layer.values)
                fresh.keys, fresh.values = layer.keys, layer.values
            layers[index] = layer = fresh
        return layer if type(layer) is cls else None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    @property
    def keys(self) -> Tensor | None:
        return None if self._keys is None else self._keys[:, :, : self.held]

    @keys.setter
    def keys(self, value: Tensor | None) -> None:
        self._keys = value
        self.held = 0 if value is None else value.shape[2]

    @property
    def values(self) -> Tensor | None:
        return None if self._values is None else self._values[:, :, : self.held]

    @values.setter
    def values(self, value: Tensor | None) -> None:
        self._values = value

    @property
    def memory_bytes(self) -> int:
        """Of both buffers."""
        if self._keys is None:
            return 0
        return 2 * self._keys.numel() * self._keys.element_size()

    def get_seq_length(self) -> int:
        return self.held

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove > 0:
            super().crop(tokens_to_remove)  # which refuses it
        self.held = max(0, self.held + tokens_to_remove)

    def room(self, like: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
        """The buffers, contiguous, with room for `tokens` more.

        Args:
            like: keys `[B, T, Hkv, D]` of new tokens.
        """
        batch, _, heads, dim = like.shape
        if not self.is_initialized:
            self.lazy_initialization(like, like)
        need, have = self.held + tokens, self._keys
        fits = have is not None and have.shape[2] >= need
        if not (fits and have.is_contiguous() and self._values.is_contiguous()):
            shape = (batch, heads, max(need + ROOM, need * 3 // 2), dim)
            old = self.keys, self.values
            with torch.inference_mode(False):
                fresh = [like.new_empty(shape) for _ in range(2)]
            for new, held in zip(fresh, old, strict=True):
                if held is not None and self.held:
                    new[:, :, : self.held] = held
            self._keys, self._values = fresh
        return self._keys, self._values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """New keys and values `[B, Hkv, T, D]`; returns all."""
        tokens = key_states.shape[2]
        if torch.is_grad_enabled() and any(
            t is not None and t.requires_grad
            for t in (key_states, value_states, self._keys, self._values)
        ):  # what autograd has saved must not be written to
            old = (self.keys, self.values) if self.held else (key_states[:, :, :0],) * 2
            self.values = torch.cat([old[1], value_states], 2)
            self.keys = torch.cat([old[0], key_states], 2)
            self.is_initialized, self.dtype = True, key_states.dtype
            self.device = key_states.device
            return self.keys, self.values
        keys, values = self.room(key_states.transpose(1, 2), tokens)
        keys[:, :, self.held : self.held + tokens] = key_states
        values[:, :, self.held : self.held + tokens] = value_states
        self.held += tokens
        return self.keys, self.values


class Rotary(NamedTuple):
    """Tables float32 `[P, R / 2]` of the new tokens and the row int32 `[B, T]` of each."""

    cos: Tensor
    sin: Tensor
    position: Tensor

    @classmethod
    def of(cls, cos: Tensor, sin: Tensor, batch: int) -> Rotary:
        """From what transformers gives to its layers, `[B or 1, T, R]`."""
        half, (rows, tokens) = cos.shape[-1] // 2, cos.shape[:2]
        tables = [t[..., :half].reshape(-1, half).float().contiguous() for t in (cos, sin)]
        return cls(*tables, _places(batch, rows, tokens, cos.device))

    def rows(self, part: slice) -> Rotary:
        return Rotary(self.cos, self.sin, self.position[part])

    def tokens(self, part: slice) -> Rotary:
        return Rotary(self.cos, self.sin, self.position[:, part].contiguous())


@lru_cache(maxsize=16)
def _places(batch: int, rows: int, tokens: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        places = torch.arange(rows * tokens, dtype=torch.int32, device=device)
        return places.view(rows, tokens).expand(batch, tokens).contiguous()


@lru_cache(maxsize=64)
def _lengths(batch: int, held: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.full((batch,), held, dtype=torch.int32, device=device)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layer: GrowingLayer,
    rotary: Rotary,
    first: Sequence[int] | None,
    *,
    scale: float,
    norms: tuple[Tensor | None, Tensor | None] = (None, None),
    norm_eps: float = 1e-6,
    keep: bool = True,
) -> Tensor:
    """T new tokens per row: written behind what `layer` holds, then causal attention over all.

    Args:
        q: `[B, T, Hq, D]`, T up to 64; k, v: `[B, T, Hkv, D]`; not rotated yet.
        first: the first key that each row sees (those before are padding), for T = 1; None for all.
        norms: weights of the RMS norms of query and key heads.
        keep: whether the tokens count from now on. Else the next ones take their place.

    Returns:
        `[B, T, Hq, D]`.
    """
    keys, values = layer.room(k, k.shape[1])
    batch, held = len(q), layer.held
    length = _lengths(batch, held, q.device)
    own = {"cos": rotary.cos, "sin": rotary.sin, "norm_eps": norm_eps}
    ops.kv_append_(
        k, v, keys, values, length, position=rotary.position, k_norm=norms[1], **own
    )  # fmt: skip
    own |= {"q_norm": norms[0], "scale": scale}
    if first is None or len(set(first)) == 1:
        window = held + 1 - first[0] if first else 0
        found = ops.kv_attention(
            q, keys, values, length, position=rotary.position, window=window, **own
        )  # fmt: skip
    else:  # a window is one number for all rows of a call
        found = torch.cat(
            [
                ops.kv_attention(
                    q[row : row + 1], keys[row : row + 1], values[row : row + 1],
                    length[row : row + 1], position=rotary.position[row : row + 1],
                    window=held + 1 - at, **own,
                )
                for row, at in enumerate(first)
            ]
        )  # fmt: skip
    layer.held = held + k.shape[1] * keep
    return found
