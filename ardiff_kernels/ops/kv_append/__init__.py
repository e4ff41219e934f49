"""`kv_append`: write new keys and values into a preallocated cache."""

from __future__ import annotations

import torch
from torch import Tensor

from ...dispatch import autograd as _autograd
from ...dispatch.library import define
from .checks import check_append

_OPTIONS = (
    "Tensor? count=None, Tensor? block_table=None, Tensor? position=None, Tensor? cos=None, "
    "Tensor? sin=None, Tensor? k_norm=None, float norm_eps=1e-6"
)


def _fake(k, v, k_cache, v_cache, length, *, k_scale=None, v_scale=None, **options):
    scales = [
        k_cache.new_empty((0,), dtype=torch.float32) if s is None else s.new_empty(s.shape)
        for s in (k_scale, v_scale)
    ]
    return k_cache.new_empty(k_cache.shape), v_cache.new_empty(v_cache.shape), *scales


_call = define(
    "kv_append(Tensor k, Tensor v, Tensor k_cache, Tensor v_cache, Tensor length, *, "
    f"{_OPTIONS}, Tensor? k_scale=None, Tensor? v_scale=None) -> (Tensor, Tensor, Tensor, Tensor)",
    check=lambda *args, **options: check_append("kv_append", *args, **options),
    fake=_fake,
)
_call_in_place = define(
    "kv_append_(Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor length, *, "
    f"{_OPTIONS}, Tensor(c!)? k_scale=None, Tensor(d!)? v_scale=None) -> ()",
    check=lambda *args, **options: check_append("kv_append_", *args, **options),
)
for _op in ("kv_append", "kv_append_"):
    _autograd.without_gradient(_op, "train with scaled_dot_product_attention, which needs no cache")


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
    """Write T new tokens of each sequence behind its own length into the cache, in place.

    Token t of row b becomes position p = length[b] + t. With `block_table` (paged attention, Kwon
    et al. 2023) that is token p % S of block block_table[b, p // S], else token p of block b. A
    key is first RMS-normed (x / sqrt(mean(x^2) + eps) * weight, as Qwen3 does with each head), then
    rotated (Su et al. 2021, the halves of Llama: dimensions i and i + R / 2 form a pair), in
    float32, then rounded to the nearest even of the cache's dtype. An int8 or float8 cache holds
    x / s with s = max|x| / 127 or max|x| / 448, one scale per token and head; where that scale is
    zero it holds zeros, and where an element of x is not finite zeros with scale NaN: a query
    that sees that token gets NaN. These zeros are positive; elsewhere a float8 zero has the sign
    of x.

    `length` is not changed: add `count` to it when `kv_attention` has run.

    Args:
        k, v: new keys and values, float32 or bfloat16 `[B, T, Hkv, D]`, T >= 1; unit stride in D,
            any other strides, such as slices of a fused projection.
        k_cache, v_cache: contiguous `[N, Hkv, S, D]`, N blocks of S tokens, float32, bfloat16, int8
            or float8_e4m3fn; D a multiple of 8 from 32 to 256. Without `block_table` N >= B.
        length: int32 `[B]`, tokens in the cache before the new ones.
        count: int32 `[B]`, how many of the T tokens are real, the first ones (default T); the
            others are not written.
        block_table: int32 `[B, M]`, the blocks of each sequence in order. A block that a call
            writes belongs to one row of it.
        position: int32 `[B, T]`, row of `cos` and `sin` of each token (default length + t).
        cos, sin: float32 `[P, R / 2]`, the rotary tables; the first R <= D dimensions are rotated.
        k_norm: float32 `[D]`, weight of the RMS norm.
        norm_eps: added to the mean square.
        k_scale, v_scale: float32 `[N, Hkv, S]`, written; with an int8 or float8 cache only.

    Raises:
        RuntimeError: a wrong shape, dtype, device, stride or combination of options. On a CPU also
            a length, count, block number or position that does not fit, before anything is written;
            on a GPU such a row is skipped (`check_data` in ``ops/_shared/kv_cache.py`` finds it).
    """
    _call_in_place(
        k,
        v,
        k_cache,
        v_cache,
        length,
        count=count,
        block_table=block_table,
        position=position,
        cos=cos,
        sin=sin,
        k_norm=k_norm,
        norm_eps=norm_eps,
        k_scale=k_scale,
        v_scale=v_scale,
    )


def kv_append(
    k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, length: Tensor, **options
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pure twin of `kv_append_`, for `torch.compile`, which makes it write in place again.

    Takes the arguments of `kv_append_`.

    Returns:
        Fresh k_cache and v_cache, and k_scale and v_scale (float32 `[0]` when not given).
    """
    return _call(k, v, k_cache, v_cache, length, **options)
