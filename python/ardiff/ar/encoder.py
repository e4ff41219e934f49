"""The causal encoder of contexts: whole sequences for training, a KV cache for sampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..batch_invariant import is_batch_invariant
from .kv_cache import CachePlan, CacheView, KVCache
from .transformer import Block, EncoderConfig, Rotary, make_norm, write

__all__ = ["CausalEncoder", "EncoderConfig"]

MOST_TOKENS = 64  # of a sequence in one call of kv_attention


class CausalEncoder(nn.Module):
    """A transformer whose token k sees tokens 0..k.

    :meth:`forward` encodes whole sequences. :meth:`prefill` and :meth:`append` give the same hidden
    states to rounding from a :class:`~ardiff.ar.kv_cache.KVCache`, whose rows may have any
    lengths; the streams of guidance are rows like others. ``cache.reset(rows)`` frees rows.

    `encoder.extend = torch.compile(encoder.extend)` compiles what :meth:`append` computes.

    Example:
        >>> import torch
        >>> from ardiff.ar.encoder import CausalEncoder, EncoderConfig
        >>> from ardiff.ar.kv_cache import KVCache
        >>> encoder = CausalEncoder(EncoderConfig(width=32, depth=1, heads=1, positions=16)).eval()
        >>> tokens = torch.randn(2, 5, 32)
        >>> cache = KVCache(encoder.plan_cache(rows=2, capacity=16))
        >>> hidden = [encoder.append(token, cache, [0, 1]) for token in tokens.split(1, dim=1)]
        >>> bool((torch.cat(hidden, 1) - encoder(tokens)).abs().max() < 1e-4)
        True
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self._add_inputs()
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.depth)])
        self.norm = make_norm(config)
        cos, sin = _rotary_tables(config) if config.position == "rotary" else (None, None)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def _add_inputs(self) -> None:
        """Makes the parameters before the blocks."""
        self.position = None
        if self.config.position == "learned":
            size = (self.config.positions, self.config.width)
            self.position = nn.Parameter(torch.randn(size) * 0.02)

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.norm.weight.dtype

    @property
    def rotary(self) -> Rotary:
        return Rotary(self.cos, self.sin)

    def _apply(self, function, recurse: bool = True):
        """Casts the module, but keeps the rotary tables in float32."""
        tables = self.cos, self.sin
        super()._apply(function, recurse)
        if self.cos is not None and self.cos.dtype != torch.float32:
            self.cos, self.sin = (table.to(self.cos.device) for table in tables)
        return self

    def forward(
        self, x: Tensor, position: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Hidden states of whole sequences, through `scaled_dot_product_attention`.

        Args:
            x: tokens `[B, T, width]`.
            position: integers `[B, T]`, default 0..T-1.
            mask: bool `[T, T]`, True where a token (row) sees another within the window; default
                causal.

        Returns:
            `[B, T, width]`, after the last norm.
        """
        return self._whole(x, position, mask, None, None)

    def _whole(
        self,
        x: Tensor,
        position: Tensor | None,
        mask: Tensor | None,
        view: CacheView | None,
        count: Tensor | None,
    ) -> Tensor:
        tokens = x.shape[1]
        if position is None:
            self._check_positions(tokens)
            x = x if self.position is None else x + self.position[:tokens]
            position = torch.arange(tokens, device=x.device).expand(len(x), tokens)
        else:
            x = self._placed(x, position)
        if 0 < self.config.window < tokens:
            at = torch.arange(tokens, device=x.device)
            near = at > at[:, None] - self.config.window
            mask = near & ((at <= at[:, None]) if mask is None else mask)
        for layer, block in enumerate(self.blocks):
            x, k, v = block.whole(x, position, self.rotary, mask)
            if view is not None:
                write(view, layer, k, v, count=count, block_table=view.block_table)
        return self.norm(x)

    def _placed(self, x: Tensor, position: Tensor) -> Tensor:
        """x with the learned positions added."""
        if self.position is None:
            return x
        return x + self.position[position.clamp(0, self.config.positions - 1)]

    def _check_positions(self, tokens: int) -> None:
        if self.config.position != "none" and tokens > self.config.positions:
            raise ValueError(
                f"the encoder has {self.config.positions} positions, got a sequence of {tokens} "
                "tokens; set EncoderConfig.positions"
            )

    def plan_cache(
        self,
        rows: int,
        capacity: int,
        *,
        block_size: int | None = None,
        blocks: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> CachePlan:
        """The cache of `rows` sequences of at most `capacity` tokens, not yet allocated."""
        c = self.config
        return CachePlan(
            c.depth, c.kv_heads, c.cache_head_dim, rows, capacity, block_size, blocks, dtype
        )

    def new_cache(
        self, rows: int, capacity: int, *, limit: int | None = None, **options
    ) -> KVCache:
        """A cache on the encoder's device; options as :meth:`plan_cache`, errors as `KVCache`."""
        return KVCache(self.plan_cache(rows, capacity, **options), self.device, limit)

    @torch.no_grad()
    def prefill(
        self,
        x: Tensor,
        cache: KVCache,
        rows: Sequence[int] | None = None,
        count: Sequence[int] | None = None,
        position: Tensor | None = None,
    ) -> Tensor:
        """Takes in many tokens of each row.

        Empty rows go through `scaled_dot_product_attention`, which is the better kernel where as
        many queries as keys are new; rows that hold tokens through `append`, 64 tokens per call.

        Args, returns, raises: as :meth:`append`, with any T.
        """
        rows, count = self._ready(x, cache, rows, count, position)
        if is_batch_invariant():
            out = x.new_zeros(x.shape)
            for i, (row, n) in enumerate(zip(rows, count, strict=True)):
                at = None if position is None else position[i : i + 1, :n]
                out[i : i + 1, :n] = self._prefill(x[i : i + 1, :n], cache, [row], [n], at)
            return out
        return self._prefill(x, cache, rows, count, position)

    def _prefill(
        self,
        x: Tensor,
        cache: KVCache,
        rows: Sequence[int],
        count: Sequence[int],
        position: Tensor | None,
    ) -> Tensor:
        if x.shape[1] == 0:
            return x
        if any(cache.lengths[row] for row in rows):
            parts = []
            for first in range(0, x.shape[1], MOST_TOKENS):
                part = slice(first, first + MOST_TOKENS)
                size = len(range(x.shape[1])[part])
                new = [min(max(n - first, 0), size) for n in count]
                at = None if position is None else position[:, part]
                # clone: a captured `extend` answers in the same memory again
                parts.append(self.append(x[:, part], cache, rows, new, at).clone())
            return torch.cat(parts, 1)
        view = cache.view(rows)
        new = torch.tensor(count, dtype=torch.int32, device=x.device)
        hidden = self._whole(x, position, None, view, new)
        cache.advance(rows, count)
        return hidden

    @torch.no_grad()
    def append(
        self,
        x: Tensor,
        cache: KVCache,
        rows: Sequence[int] | None = None,
        count: Sequence[int] | None = None,
        position: Tensor | None = None,
        causal: bool = True,
    ) -> Tensor:
        """Takes in a few tokens of each row, behind those that its cache holds.

        Args:
            x: tokens `[B, T, width]`, T from 1 to 64.
            cache: written in place.
            rows: B different rows of the cache; default 0..B-1.
            count: B integers, how many of the T tokens of each row are real, the first ones.
            position: integers `[B, T]`, default each row's length + t.
            causal: False lets the T tokens see each other.

        Returns:
            Hidden states `[B, T, width]`; those behind `count` mean nothing.

        Raises:
            ValueError: rows, counts or positions out of range, a row past the cache's capacity.
            MemoryError: no free block.
        """
        rows, count = self._ready(x, cache, rows, count, position)
        new = torch.tensor(count, dtype=torch.int32, device=x.device)
        if position is not None:
            position = position.to(x.device, torch.int32).contiguous()
        hidden = self.extend(x, cache.view(rows), new, position, causal)
        cache.advance(rows, count)
        return hidden

    def _ready(
        self,
        x: Tensor,
        cache: KVCache,
        rows: Sequence[int] | None,
        count: Sequence[int] | None,
        position: Tensor | None,
    ) -> tuple[list[int], list[int]]:
        """Rows and counts that fit x, their blocks reserved; raises before anything changes."""
        rows, count = _checked(x, cache, rows, count)
        after = [cache.lengths[row] + n for row, n in zip(rows, count, strict=True)]
        if position is None:
            self._check_positions(max(after, default=0))
        else:
            self._check_given(position, x, count)
        cache.reserve(rows, after)
        return rows, count

    def _check_given(self, position: Tensor, x: Tensor, count: list[int]) -> None:
        if tuple(position.shape) != tuple(x.shape[:2]) or position.is_floating_point():
            raise ValueError(
                f"position must be integers of shape {list(x.shape[:2])}, got "
                f"{list(position.shape)} of {str(position.dtype)[6:]}"
            )
        if self.config.position == "none":
            return
        for b, (places, n) in enumerate(zip(position.tolist(), count, strict=True)):
            wrong = [at for at in places[:n] if not 0 <= at < self.config.positions]
            if wrong:
                raise ValueError(
                    f"position must lie in [0, {self.config.positions}), got {wrong[0]} in row {b}"
                )

    def extend(
        self,
        x: Tensor,
        view: CacheView,
        count: Tensor,
        position: Tensor | None = None,
        causal: bool = True,
    ) -> Tensor:
        """What :meth:`append` computes, on tensors alone.

        Args:
            x: `[B, T, width]`.
            view: from ``cache.view(rows)``; its keys and values are written in place, or replaced
                by new tensors in its lists under `torch.compile`.
            count: int32 `[B]`.
            position: int32 `[B, T]` or None.
            causal: as :meth:`append`.
        """
        if self.position is not None:
            at = position
            if at is None:
                at = view.length[:, None] + torch.arange(x.shape[1], device=x.device)
            x = self._placed(x, at)
        for layer, block in enumerate(self.blocks):
            x = block.extend(x, view, layer, count, position, self.rotary, causal)
        return self.norm(x)


def _rotary_tables(config: EncoderConfig) -> tuple[Tensor, Tensor]:
    index = torch.arange(0, config.rotary_dims, 2, dtype=torch.float64)
    turn = config.rotary_base ** -(index / config.rotary_dims)
    angle = torch.arange(config.positions, dtype=torch.float64)[:, None] * turn
    return angle.cos().float(), angle.sin().float()


def _checked(
    x: Tensor, cache: KVCache, rows: Sequence[int] | None, count: Sequence[int] | None
) -> tuple[list[int], list[int]]:
    """Rows and counts as lists that fit x."""
    rows = list(range(len(x)) if rows is None else rows)
    cache.check_rows(rows)
    if len(rows) != len(x):
        raise ValueError(f"rows must name a row of the cache for each of {len(x)}, got {len(rows)}")
    tokens = x.shape[1]
    count = [tokens] * len(x) if count is None else [int(n) for n in count]
    if len(count) != len(x) or any(not 0 <= n <= tokens for n in count):
        raise ValueError(f"count must be {len(x)} integers in [0, {tokens}], got {count}")
    return rows, count
