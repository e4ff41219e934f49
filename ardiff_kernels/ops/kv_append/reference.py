"""Appending to a KV cache in plain PyTorch: the definition of `kv_append`.

Computes in float64 when the new tokens are float64 (the oracle of the tests), else in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._shared.kv_cache import check_data
from .._shared.rows import compute_dtype

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


def total(t: Tensor) -> Tensor:
    """Sum over the last dimension, halving it again and again: an order that only its size sets."""
    while t.shape[-1] > 1:
        half = (t.shape[-1] + 1) // 2
        rest = t[..., half:]
        t = torch.cat([t[..., : rest.shape[-1]] + rest, t[..., rest.shape[-1] : half]], -1)
    return t[..., 0]


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """RMS norm over the last dimension; `x` itself without a weight."""
    if weight is None:
        return x
    mean = total(x.square()) / x.shape[-1]
    return x * (1 / (mean + eps).sqrt()).unsqueeze(-1) * weight.to(x.dtype)


def rotate(x: Tensor, position: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
    """Rotary embedding of `x` `[T, H, D]` at `position` `[T]`; `x` itself without tables."""
    if cos is None:
        return x
    c, s = (table.to(x.dtype)[position.long()].unsqueeze(1) for table in (cos, sin))
    half = c.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * c - second * s, second * c + first * s, rest], -1)


def quantize(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes of `x` `[..., D]` in int8 or float8_e4m3fn, and their scales `[...]`."""
    largest = LARGEST[dtype]
    scale = x.abs().amax(-1) / largest
    scale = torch.where(scale.isfinite(), scale, torch.nan)
    coded = (scale > 0).unsqueeze(-1)
    codes = (x / torch.where(coded, scale.unsqueeze(-1), 1.0)).clamp(-largest, largest)
    codes = torch.where(coded, codes, 0.0)
    return (codes.round() if dtype == torch.int8 else codes).to(dtype), scale


def places(
    b: int, first: int, last: int, size: int, block_table: Tensor | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Block and token within it of positions [first, last) of row b."""
    p = torch.arange(first, last, device=device)
    if block_table is None:
        return torch.full_like(p, b), p
    return block_table[b].long()[p // size], p % size


def kv_append_(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    length: Tensor,
    *,
    count: Tensor | None = None,
    block_table: Tensor | None = None,
    position: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    k_norm: Tensor | None = None,
    norm_eps: float = 1e-6,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    tokens, size = k.shape[1], k_cache.shape[2]
    check_data("kv_append", tokens, k_cache, length, count, block_table, position, cos)
    dtype = compute_dtype(k)
    for b, before in enumerate(length.tolist()):
        new = tokens if count is None else int(count[b])
        block, token = places(b, before, before + new, size, block_table, k.device)
        at = torch.arange(before, before + new, device=k.device)
        key = rms_norm(k[b, :new].to(dtype), k_norm, norm_eps)
        key = rotate(key, at if position is None else position[b, :new], cos, sin)
        for x, cache, scale in ((key, k_cache, k_scale), (v[b, :new].to(dtype), v_cache, v_scale)):
            if scale is None:
                cache[block, :, token] = x.to(cache.dtype)
            else:
                codes, scales = quantize(x, cache.dtype)
                # float8 has no indexed assignment.
                cache.view(torch.int8)[block, :, token] = codes.view(torch.int8)
                scale[block, :, token] = scales.to(scale.dtype)


def kv_append(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    length: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    **options,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    caches = k_cache.clone(), v_cache.clone()
    scales = [None if s is None else s.clone() for s in (k_scale, v_scale)]
    kv_append_(k, v, *caches, length, k_scale=scales[0], v_scale=scales[1], **options)
    empty = [k_cache.new_empty(0, dtype=torch.float32) if s is None else s for s in scales]
    return *caches, *empty
