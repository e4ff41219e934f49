"""Attention over a KV cache in plain PyTorch: the definition of `kv_attention`.

Computes in float64 when the queries are float64 (the oracle of the tests), else in float32. Sums
halve their terms again and again, so that only elementwise operations make a result, whose bits
then depend on neither the batch nor the number of new tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._shared.kv_cache import check_data
from .._shared.rows import compute_dtype
from ..kv_append.reference import places, rms_norm, rotate, total

SPLIT = 256


def split_of(
    cache: Tensor, scale: Tensor | None, block: Tensor, token: Tensor, dtype: torch.dtype
) -> Tensor:
    """Keys or values `[Hkv, SPLIT, D]` at these places, zero behind them."""
    if cache.dtype == torch.float8_e4m3fn:
        rows = cache.view(torch.int8)[block, :, token].view(cache.dtype).to(dtype)
    else:
        rows = cache[block, :, token].to(dtype)
    if scale is not None:
        rows = rows * scale[block, :, token].to(dtype).unsqueeze(-1)
    padded = rows.new_zeros((rows.shape[1], SPLIT, rows.shape[2]))
    padded[:, : len(rows)] = rows.transpose(0, 1)
    return padded


def attend(q: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Maximum `[T, Hkv, G]`, sum, and weighted values `[T, Hkv, G, D]` of a split.

    `q` is `[T, Hkv, G, D]`, already scaled, `keys` and `values` `[Hkv, SPLIT, D]`, `seen`
    `[T, SPLIT]`.
    """
    mask = seen[:, None, None]
    dots = total(q.unsqueeze(3) * keys[:, None])
    dots = torch.where(mask, dots, -torch.inf)
    high = dots.amax(-1)
    weights = (dots - torch.where(high == -torch.inf, 0.0, high).unsqueeze(-1)).exp()
    used = seen.any(0)[:, None]
    products = weights.unsqueeze(-2) * torch.where(used, values, 0).transpose(1, 2)[:, None]
    # A key that another query sees may hold NaN.
    products = torch.where(mask.unsqueeze(-2), products, 0)
    return high, total(weights), total(products)


def kv_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    length: Tensor,
    *,
    count: Tensor | None = None,
    block_table: Tensor | None = None,
    position: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    q_norm: Tensor | None = None,
    norm_eps: float = 1e-6,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    scale: float | None = None,
    window: int = 0,
    causal: bool = True,
) -> Tensor:
    tokens, heads, d = q.shape[1:]
    kv_heads, size = k_cache.shape[1:3]
    check_data("kv_attention", tokens, k_cache, length, count, block_table, position, cos)
    dtype, device = compute_dtype(q), q.device
    factor = d**-0.5 if scale is None else scale
    out = torch.zeros((len(q), tokens, heads, d), dtype=q.dtype, device=device)
    for b, before in enumerate(length.tolist()):
        new = tokens if count is None else int(count[b])
        if new == 0:
            continue
        at = torch.arange(before, before + new, device=device)
        query = rms_norm(q[b, :new].to(dtype), q_norm, norm_eps)
        query = rotate(query, at if position is None else position[b, :new], cos, sin)
        query = (query * factor).reshape(new, kv_heads, heads // kv_heads, d)
        high = torch.full(query.shape[:3], -torch.inf, dtype=dtype, device=device)
        sums, acc = torch.zeros_like(high), torch.zeros_like(query)
        begin = max(0, before - window + 1) // SPLIT * SPLIT if window else 0
        for first in range(begin, before + new, SPLIT):
            last = min(first + SPLIT, before + new)
            p = torch.arange(first, first + SPLIT, device=device)
            seen = (p <= at[:, None]) if causal else (p < before + new).expand(new, SPLIT)
            if window:
                seen = seen & (p > at[:, None] - window)
            where = places(b, first, last, size, block_table, device)
            keys = split_of(k_cache, k_scale, *where, dtype)
            values = split_of(v_cache, v_scale, *where, dtype)
            s_high, s_sum, s_acc = attend(query, keys, values, seen)
            top = torch.maximum(high, s_high)
            shift = torch.where(top == -torch.inf, 0.0, top)
            old, fresh = (high - shift).exp(), (s_high - shift).exp()
            sums = sums * old + s_sum * fresh
            acc = acc * old.unsqueeze(-1) + s_acc * fresh.unsqueeze(-1)
            high = top
        result = acc / torch.where(sums == 0, 1.0, sums).unsqueeze(-1)
        out[b, :new] = result.reshape(new, heads, d).to(q.dtype)
    return out
