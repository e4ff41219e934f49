"""`kv_attention`: attention of new queries over a ragged, possibly paged KV cache."""

from __future__ import annotations

from torch import Tensor

from ...dispatch import autograd as _autograd
from ...dispatch.library import define
from .checks import check_attention


def _fake(q: Tensor, *args, **options) -> Tensor:
    return q.new_empty(q.shape)


_call = define(
    "kv_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor length, *, Tensor? count=None, "
    "Tensor? block_table=None, Tensor? position=None, Tensor? cos=None, Tensor? sin=None, "
    "Tensor? q_norm=None, float norm_eps=1e-6, Tensor? k_scale=None, Tensor? v_scale=None, "
    "float? scale=None, int window=0, bool causal=True) -> Tensor",
    check=lambda *args, **options: check_attention("kv_attention", *args, **options),
    fake=_fake,
)
_autograd.without_gradient("kv_attention", "train with scaled_dot_product_attention")


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
    """Attention of the T newest tokens of each sequence over its cache, after `kv_append_`.

    Query t of row b sees the keys j with j <= length[b] + t, or j < length[b] + count[b] when not
    `causal` (the new tokens see each other: block-causal); with a window also j > length[b] + t -
    window. out = sum_j softmax_j(scale q.k_j) v_j, and zero where a query sees no key. Query head h
    reads key head h // (Hq / Hkv). All arithmetic is float32; queries are RMS-normed and rotated as
    `kv_append_` does keys, and not rounded afterwards. On a CPU with AVX512-BF16, bfloat16 queries
    over a bfloat16 cache go by its dot products: they and the weights of keys are rounded to
    bfloat16, sums stay float32; `ARDIFF_CPU_EXACT=1` keeps float32.

    Keys are cut at multiples of 256 positions. Each split keeps its own maximum, sum and weighted
    values (Dao et al. 2023, flash-decoding), and splits merge in ascending order: the result of a
    row depends on its own queries and keys alone, whatever the batch, the capacity of the cache or
    the number of threads, and whether tokens came in one call or one by one. Keys that a query
    does not see may hold NaN. A key whose scale q.k overflows to -inf weighs nothing, as one that
    is not seen; a query that sees only such keys gets zero. One that sees a key whose scale q.k is
    inf or NaN gets NaN.

    It is the kernel for few new tokens over a long cache. A long prompt is better encoded with
    ``torch.nn.functional.scaled_dot_product_attention`` and its keys written by `kv_append_`.

    Args:
        q: float32 or bfloat16 `[B, T, Hq, D]`, T from 1 to 64, Hq a multiple of Hkv; unit stride in
            D, any other strides.
        k_cache, v_cache: contiguous `[N, Hkv, S, D]`, which hold the new tokens' keys and values
            too, float32, bfloat16, int8 or float8_e4m3fn; D a multiple of 8 from 32 to 256.
        length: int32 `[B]`, tokens in the cache before the new ones.
        count: int32 `[B]`, how many of the T tokens are real (default T); the results of the
            others are zero.
        block_table: int32 `[B, M]`, the blocks of each sequence in order.
        position: int32 `[B, T]`, row of `cos` and `sin` of each token (default length + t).
        cos, sin: float32 `[P, R / 2]`, the rotary tables; the first R <= D dimensions are rotated.
        q_norm: float32 `[D]`, weight of an RMS norm over each head.
        norm_eps: added to the mean square.
        k_scale, v_scale: float32 `[N, Hkv, S]`, with an int8 or float8 cache only.
        scale: factor of q.k (default D^-1/2).
        window: how many keys a query sees at most; 0 is no limit.
        causal: False lets the new tokens see each other.

    Returns:
        `[B, T, Hq, D]` in q's dtype, contiguous.

    Raises:
        RuntimeError: a wrong shape, dtype, device, stride or combination of options. On a CPU also
            a length, count, block number or position that does not fit; on a GPU the results of
            such a row are zero.

    Example:
        One new token for each of 2 sequences, which hold 3 and 5 tokens:

        >>> import torch
        >>> from ardiff_kernels import ops
        >>> k_cache, v_cache = torch.zeros(2, 2, 1, 16, 32)  # [N, Hkv, S, D]: room for 16 tokens
        >>> length = torch.tensor([3, 5], dtype=torch.int32)
        >>> k, v = torch.randn(2, 2, 1, 1, 32)  # [B, T, Hkv, D]
        >>> ops.kv_append_(k, v, k_cache, v_cache, length)
        >>> q = torch.randn(2, 1, 4, 32)  # 4 query heads read one key head
        >>> ops.kv_attention(q, k_cache, v_cache, length).shape
        torch.Size([2, 1, 4, 32])
    """
    return _call(
        q,
        k_cache,
        v_cache,
        length,
        count=count,
        block_table=block_table,
        position=position,
        cos=cos,
        sin=sin,
        q_norm=q_norm,
        norm_eps=norm_eps,
        k_scale=k_scale,
        v_scale=v_scale,
        scale=scale,
        window=window,
        causal=causal,
    )
