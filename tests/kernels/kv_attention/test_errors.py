"""Every invalid call of `kv_append` and `kv_attention` gives its own message, the same on every
backend."""

from __future__ import annotations

import re

import pytest
import torch

from ardiff_kernels.dispatch import backends
from tests.kernels.kv_attention.calls import integers

F16, BF16, F64, I8 = torch.float16, torch.bfloat16, torch.float64, torch.int8
OPS = torch.ops.ardiff
SCALE = torch.zeros(3, 2, 8)
TABLE = torch.zeros(4, 32)


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(*shape, dtype=dtype)


def call(op, **new):
    """The op with some arguments replaced, on the default device; an argument that a copy would
    change is a function."""

    def invalid():
        device = torch.get_default_device()
        made = {k: v.to(device) if torch.is_tensor(v) else v for k, v in new.items()}
        made = {k: v() if callable(v) else v for k, v in made.items()}
        caches = {"k_cache": zeros(3, 2, 8, 64), "v_cache": zeros(3, 2, 8, 64)}
        tokens = {"k": zeros(3, 2, 2, 64), "v": zeros(3, 2, 2, 64)}
        if op == "kv_attention":
            tokens = {"q": zeros(3, 2, 4, 64)}
        given = {**tokens, **caches, "length": integers([0, 1, 2]), **made}
        args = [given.pop(name) for name in (*tokens, *caches, "length")]
        getattr(OPS, op).default(*args, **given)

    return invalid


def append(**new):
    return call("kv_append", **new)


def attention(**new):
    return call("kv_attention", **new)


TWO_BLOCKS = {"k_cache": zeros(2, 2, 8, 64), "v_cache": zeros(2, 2, 8, 64)}
TOGETHER = "k_scale and v_scale go with an int8 or float8_e4m3fn cache and with no other, and the "
ONE = torch.zeros(3, 2, 8, 64)
INVALID = {
    "same memory": (
        call("kv_append_", k_cache=lambda: ONE, v_cache=lambda: ONE),
        "kv_append_: k_cache and v_cache are written in place but share their memory; clone one",
    ),
    "dimensions": (append(k=zeros(3, 2, 64)), "kv_append: k must be [B, T, H, D], got 3 dimen"),
    "token dtype": (
        append(k=zeros(3, 2, 2, 64, dtype=F16)),
        "kv_append: k must be float32 or bfloat16, got float16",
    ),
    "query dtype": (
        attention(q=zeros(3, 2, 4, 64, dtype=F64)),
        "kv_attention: q must be float32 or bfloat16, got float64",
    ),
    "cache dimensions": (
        append(k_cache=zeros(3, 2, 64)),
        "kv_append: k_cache must be [N, H, S, D], got 3 dimensions",
    ),
    "cache dtype": (
        attention(k_cache=zeros(3, 2, 8, 64, dtype=F16)),
        "kv_attention: k_cache must be float32, bfloat16, int8 or float8_e4m3fn, got float16",
    ),
    "head dimension": (
        append(k_cache=zeros(3, 2, 8, 24)),
        "kv_append: k_cache must be [N, H, S, D] with H and S at least 1 and D a multiple of 8 "
        "from 32 to 256, got [3, 2, 8, 24]",
    ),
    "cache strides": (
        append(k_cache=lambda: zeros(3, 8, 2, 64).transpose(1, 2)),
        "kv_append: k_cache must be a contiguous float32 [3, 2, 8, 64], got float32 [3, 2, 8, 64]",
    ),
    "caches differ": (
        attention(v_cache=zeros(3, 2, 8, 64, dtype=BF16)),
        "kv_attention: v_cache must be a contiguous float32 [3, 2, 8, 64], got bfloat16 "
        "[3, 2, 8, 64]",
    ),
    "scale of a plain cache": (
        append(k_scale=SCALE, v_scale=SCALE),
        f"kv_append: {TOGETHER}cache is float32",
    ),
    "no scale": (
        attention(k_cache=zeros(3, 2, 8, 64, dtype=I8), v_cache=zeros(3, 2, 8, 64, dtype=I8)),
        f"kv_attention: {TOGETHER}cache is int8",
    ),
    "scale shape": (
        append(
            k_cache=zeros(3, 2, 8, 64, dtype=I8),
            v_cache=zeros(3, 2, 8, 64, dtype=I8),
            k_scale=zeros(3, 2, 7),
            v_scale=SCALE,
        ),
        "kv_append: k_scale must be a contiguous float32 [3, 2, 8], got float32 [3, 2, 7]",
    ),
    "key heads": (
        append(k=zeros(3, 2, 4, 64)),
        "kv_append: k must be [B, T, 2, 64] with T >= 1 for a cache [3, 2, 8, 64], got "
        "[3, 2, 4, 64]",
    ),
    "values differ": (
        append(v=zeros(3, 2, 2, 64, dtype=BF16)),
        "kv_append: v must be float32 [3, 2, 2, 64] as k, got bfloat16 [3, 2, 2, 64]",
    ),
    "query heads": (
        attention(q=zeros(3, 2, 3, 64)),
        "kv_attention: q must be [B, T, H, 64] with T from 1 to 64 and H a multiple of 2 for a "
        "cache [3, 2, 8, 64], got [3, 2, 3, 64]",
    ),
    "too many queries": (
        attention(q=zeros(3, 65, 4, 64)),
        "kv_attention: q must be [B, T, H, 64] with T from 1 to 64 and H a multiple of 2 for a "
        "cache [3, 2, 8, 64], got [3, 65, 4, 64]",
    ),
    "stride": (
        attention(q=lambda: zeros(3, 2, 64, 4).transpose(2, 3)),
        "kv_attention: q must have unit stride in its last dimension, got strides [512, 256, 1, 4]"
        "; call .contiguous() first",
    ),
    "length dtype": (
        append(length=torch.zeros(3, dtype=torch.int64)),
        "kv_append: length must be a contiguous int32 [3], got int64 [3]",
    ),
    "count": (
        attention(count=integers([1])),
        "kv_attention: count must be a contiguous int32 [3], got int32 [1]",
    ),
    "too few blocks": (
        append(**TWO_BLOCKS),
        "kv_append: without block_table the cache needs a block for each of the 3 rows, got "
        "k_cache [2, 2, 8, 64]",
    ),
    "block table": (
        attention(block_table=integers([0, 1, 2])),
        "kv_attention: block_table must be a contiguous int32 [3, M] with M >= 1, got int32 [3]",
    ),
    "cos alone": (append(cos=TABLE), "kv_append: cos and sin go together: pass both or neither"),
    "position alone": (
        append(position=torch.zeros(3, 2, dtype=torch.int32)),
        "kv_append: position selects rows of cos and sin: pass them too",
    ),
    "cos too wide": (
        attention(cos=zeros(4, 33), sin=zeros(4, 33)),
        "kv_attention: cos must be a contiguous float32 [P, R / 2] with P >= 1 and 2 <= R <= 64, "
        "got float32 [4, 33]",
    ),
    "sin": (
        attention(cos=TABLE, sin=zeros(5, 32)),
        "kv_attention: sin must be a contiguous float32 [4, 32], got float32 [5, 32]",
    ),
    "position shape": (
        append(cos=TABLE, sin=TABLE, position=torch.zeros(3, 1, dtype=torch.int32)),
        "kv_append: position must be a contiguous int32 [3, 2], got int32 [3, 1]",
    ),
    "norm": (
        append(k_norm=zeros(32)),
        "kv_append: k_norm must be a contiguous float32 [64], got float32 [32]",
    ),
    "norm_eps": (
        attention(q_norm=zeros(64), norm_eps=-0.5),
        "kv_attention: norm_eps must be at least 0, got -0.5",
    ),
    "window": (attention(window=-1), "kv_attention: window must be at least 0, got -1"),
    "in-place twin": (
        call("kv_append_", k_norm=zeros(32)),
        "kv_append_: k_norm must be a contiguous float32 [64], got float32 [32]",
    ),
}
SMALLER = torch.tensor([[0], [1], [5]], dtype=torch.int32)
# What the tensors say, found on a CPU.
DATA = {
    "length": (append(length=integers([0, -1, 2])), "length must be at least 0, got -1 in row 1"),
    "count": (append(count=integers([0, 3, 2])), "count must lie in [0, 2], got 3 in row 1"),
    "full": (
        append(length=integers([0, 1, 7])),
        "row 2 needs position 8, but the cache holds 8 tokens per sequence; make a larger cache",
    ),
    "block": (
        append(block_table=SMALLER),
        "block_table must name blocks in [0, 3), got 5 at [2, 0]",
    ),
    "position": (
        append(cos=TABLE[:3], sin=TABLE[:3]),
        "row 2 has position 3, but cos and sin hold 3 positions; make longer tables",
    ),
}


@pytest.fixture
def serving(implementation):
    name, _, variant = implementation.partition("-")
    if reason := backends.unusable("kv_append", name, "cuda" if variant == "gpu" else "cpu"):
        pytest.skip(f"{name}: {reason}")
    return implementation


@pytest.mark.parametrize("name", INVALID)
def test_message(serving, name):
    invalid, message = INVALID[name]
    with pytest.raises(RuntimeError, match="^" + re.escape(message)):
        invalid()


@pytest.mark.parametrize("name", DATA)
def test_message_about_data(serving, name):
    if serving != "reference" and not serving.startswith("cpu"):
        pytest.skip("rows that do not fit are skipped here")
    invalid, message = DATA[name]
    with pytest.raises(RuntimeError, match="^" + re.escape(f"kv_append: {message}")):
        invalid()


def test_nothing_is_written_before_an_error(serving):
    """The last row does not fit: on a CPU an error before any write, elsewhere only that row is
    left out."""
    cache = torch.zeros(3, 2, 8, 64)
    args = (torch.ones(3, 2, 2, 64), torch.ones(3, 2, 2, 64), cache, cache.clone())
    if serving == "reference" or serving.startswith("cpu"):
        with pytest.raises(RuntimeError, match="row 2 needs position 8"):
            OPS.kv_append_(*args, integers([0, 1, 7]))
        assert not cache.any()
    else:
        OPS.kv_append_(*args, integers([0, 1, 7]))
        assert cache[:2].any() and not cache[2].any()


def test_mixed_devices():
    with pytest.raises(RuntimeError, match="must be on one device, but q is on cpu and cos on"):
        attention(cos=lambda: zeros(4, 32).to("meta"), sin=lambda: zeros(4, 32).to("meta"))()


def test_no_gradient_is_lost_in_silence(serving):
    """Tensors that require grad are refused; autograd knows what an append has written."""
    caches = torch.zeros(1, 1, 4, 32), torch.zeros(1, 1, 4, 32)
    length, new = torch.zeros(1, dtype=torch.int32), torch.ones(1, 1, 1, 32)
    wanted = torch.ones(1, 1, 1, 32, requires_grad=True)
    for name, tokens in (("kv_append", (wanted, new)), ("kv_append_", (new, wanted))):
        with pytest.raises(RuntimeError, match=f"^{name}: [kv] requires grad but this op has no"):
            getattr(OPS, name).default(*tokens, *caches, length)
    with pytest.raises(RuntimeError, match="^kv_attention: q requires grad but this op has no"):
        OPS.kv_attention.default(wanted, *caches, length)
    factor = torch.ones(1, 1, 4, 32, requires_grad=True)
    product = (factor * caches[0]).sum()
    OPS.kv_append_.default(new, new, *caches, length)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
