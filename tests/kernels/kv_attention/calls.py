"""Random calls of `kv_append` and `kv_attention`, their oracle, and PyTorch's own attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ardiff_kernels.ops.kv_append.reference import quantize, rms_norm, rotate
from ardiff_kernels.testing import Call, same_bits

F32, BF16, I8, F8 = torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn
INTERPRETED = ("triton",)


def random(seed: int, *shape: int, dtype: torch.dtype = F32) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    values = torch.randn(*shape, generator=generator, device="cpu").to(dtype)
    return values.to(torch.get_default_device())


def integers(values: Sequence[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int32)


def unused(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor of NaN, or for int8 of its largest code."""
    if dtype == I8:
        return torch.full(shape, 127, dtype=dtype)
    return torch.full(shape, math.nan).to(dtype)


class AttentionCall(Call):
    """A call of `kv_attention`, its rows and tokens apart, and PyTorch's own attention."""

    def row(self, b: int) -> AttentionCall:
        """Row b alone."""
        options = dict(self.options)
        for name in ("count", "position", "block_table"):
            if options.get(name) is not None:
                options[name] = options[name][b : b + 1].contiguous()
        caches = [self.args["k_cache"], self.args["v_cache"]]
        if options.get("block_table") is None:
            caches = [c.view(torch.int8)[b : b + 1].view(c.dtype) for c in caches]
            for name in ("k_scale", "v_scale"):
                if options.get(name) is not None:
                    options[name] = options[name][b : b + 1]
        k_cache, v_cache = caches
        q, length = self.args["q"][b : b + 1], self.args["length"][b : b + 1].contiguous()
        return self.changed(q=q, k_cache=k_cache, v_cache=v_cache, length=length, **options)

    def token(self, t: int) -> AttentionCall:
        """New token t alone, the ones before it being in the cache already."""
        options = dict(self.options)
        count = options.get("count")
        if count is not None:
            options["count"] = (count - t).clamp(0, 1).int()
        if options.get("position") is not None:
            options["position"] = options["position"][:, t : t + 1].contiguous()
        length = self.args["length"] + t
        if count is not None:
            length = torch.minimum(length, self.args["length"] + count)
        return self.changed(q=self.args["q"][:, t : t + 1], length=length.int(), **options)

    def sdpa(self) -> Tensor:
        """`scaled_dot_product_attention` in q's dtype, row by row with a mask."""
        o = self.options
        out = torch.zeros_like(self.args["q"])
        for b, before in enumerate(self.args["length"].tolist()):
            new = self.args["q"].shape[1] if o.get("count") is None else int(o["count"][b])
            if new == 0:
                continue
            at = before + torch.arange(new)
            query = rms_norm(self.args["q"][b, :new], o.get("q_norm"), o.get("norm_eps", 1e-6))
            position = at if o.get("position") is None else o["position"][b, :new]
            query = rotate(query, position, o.get("cos"), o.get("sin")).transpose(0, 1)
            keys, values = (self.logical(name, b, before + new) for name in "kv")
            p = torch.arange(before + new)
            seen = p <= at[:, None] if o.get("causal", True) else (p >= 0).expand(new, -1)
            if o.get("window"):
                seen = seen & (p > at[:, None] - o["window"])
            result = torch.nn.functional.scaled_dot_product_attention(
                query[None], keys[None], values[None], attn_mask=seen, enable_gqa=True,
                scale=o.get("scale"),
            )  # fmt: skip
            out[b, :new] = result[0].transpose(0, 1)
        return out

    def logical(self, name: str, b: int, n: int) -> Tensor:
        """The first n keys or values of row b in q's dtype, `[Hkv, n, D]`."""
        cache, scale = self.args[f"{name}_cache"], self.options.get(f"{name}_scale")
        p, size, table = torch.arange(n), cache.shape[2], self.options.get("block_table")
        block = torch.full_like(p, b) if table is None else table[b].long()[p // size]
        codes = cache.view(torch.int8) if cache.dtype == F8 else cache
        rows = codes[block, :, p % size].view(cache.dtype).float()
        if scale is not None:
            rows = rows * scale[block, :, p % size].unsqueeze(-1)
        return rows.transpose(0, 1).to(self.args["q"].dtype)


def attention_call(
    length: Sequence[int],
    T: int = 1,
    heads: int = 4,
    kv_heads: int = 2,
    D: int = 64,
    dtype: torch.dtype = F32,
    cache: torch.dtype | None = None,
    count: Sequence[int] | None = None,
    block: int = 0,
    capacity: int = 0,
    rotary: int = 0,
    norm: bool = False,
    seed: int = 0,
    **options,
) -> AttentionCall:
    """A call whose cache is NaN wherever no query may look.

    `block` is the size of the blocks of a paged cache, which lie in a shuffled order among unused
    ones; `capacity` widens the cache beyond what the longest row needs; `rotary` is R.
    """
    cache = cache or dtype
    rows, counts = len(length), count or [T] * len(length)
    ends = [a + b for a, b in zip(length, counts, strict=True)]
    size = block or max(max(ends, default=1), capacity, 1)
    columns = -(-max(max(ends, default=1), capacity, 1) // size)
    blocks = 2 * rows * columns + 1 if block else max(rows, 1)
    shape = (blocks, kv_heads, size, D)
    order = torch.randperm(blocks, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    table = order[: rows * columns].reshape(rows, columns).int().to(torch.get_default_device())
    caches = {}
    for i, name in enumerate("kv"):
        codes, scales = unused(shape, cache), torch.full(shape[:3], math.nan)
        for b, end in enumerate(ends):
            values = random(seed + 100 * b + i + 1, max(end, 1), kv_heads, D)[:end]
            p = torch.arange(end)
            where = (table[b].long()[p // size] if block else torch.full_like(p, b), p % size)
            if cache in (I8, F8):
                rounded, scales[where[0], :, where[1]] = quantize(values, cache)
            else:
                rounded = values.to(cache)
            codes.view(torch.int8 if cache == F8 else cache)[where[0], :, where[1]] = (
                rounded.view(torch.int8) if cache == F8 else rounded
            )
        caches[f"{name}_cache"] = codes
        if cache in (I8, F8):
            options[f"{name}_scale"] = scales
    if block:
        options["block_table"] = table
    if count is not None:
        options["count"] = integers(count)
    if rotary:
        angles = torch.arange(max(ends) + 1)[:, None] / 50.0 ** (torch.arange(rotary // 2) / rotary)
        options |= {"cos": angles.cos(), "sin": angles.sin()}
    if norm:
        options["q_norm"] = 1 + 0.1 * random(seed + 7, D)
    q = random(seed, rows, T, heads, D, dtype=dtype)
    args = {"q": q, **caches, "length": integers(length)}
    return AttentionCall("kv_attention", args, options)


def excess(found: torch.Tensor, call) -> float:
    """The largest error over twice that of PyTorch's attention (and a float32 rounding)."""
    exact = call.oracle()
    assert (
        found.shape == call.args["q"].shape
        and found.dtype == call.args["q"].dtype
        and found.is_contiguous()
    )
    assert found.isfinite().all()
    if not found.numel():
        return 0.0
    theirs = (call.sdpa().double() - exact).abs().max().item()
    return (found.double() - exact).abs().max().item() / (2 * theirs + 2.0**-24)


def assert_nan_scale_reaches_those_that_see_it(run, cache: torch.dtype, part: str) -> None:
    """So `kv_append_` marks a token that was not finite. `run` takes a call."""
    call = attention_call([20], T=3, heads=2, kv_heads=1, D=32, cache=cache)
    clean = run(call)
    call.options[part][0, 0, 22] = math.nan
    spoilt = run(call)
    assert same_bits(spoilt[:, :2], clean[:, :2]) and spoilt[:, 2].isnan().all()


def assert_overflow_weighs_nothing(run, dtype: torch.dtype = F32) -> None:
    """q.k = -inf at all keys, at a whole split, and at some keys of each split."""
    call = attention_call([300, 300, 300], heads=2, kv_heads=1, D=32, dtype=dtype)
    call.args["q"] = call.args["q"].abs() * 1e38
    call.args["k_cache"][0] = -call.args["k_cache"][0].abs() - 100
    call.args["k_cache"][1, :, :256] = -call.args["k_cache"][1, :, :256].abs() - 100
    call.args["k_cache"][1, :, 256:] = 0
    call.args["k_cache"][2, :, ::2] = -call.args["k_cache"][2, :, ::2].abs() - 100
    call.args["k_cache"][2, :, 1::2] = 0
    found, values = run(call).float(), call.args["v_cache"].float()
    tolerance = 1e-5 if dtype == F32 else 2.0**-8
    assert (found[0] == 0).all()
    assert (found[1] - values[1, 0, 256:301].mean(0)).abs().max() < tolerance
    assert (found[2] - values[2, 0, 1:301:2].mean(0)).abs().max() < tolerance


# Few programs each, for the interpreter.
SMALL = {
    "one": dict(length=[5]),
    "ragged": dict(length=[0, 300, 40], kv_heads=1, D=32, dtype=BF16),
    "causal": dict(length=[254, 3], T=4, kv_heads=1, count=[4, 2]),
    "block causal": dict(length=[30], T=3, causal=False, kv_heads=1),
    "window": dict(length=[300], T=3, window=20, kv_heads=1),
    "paged": dict(length=[70, 9], block=16, dtype=BF16, kv_heads=1),
    "int8": dict(length=[70], cache=I8, kv_heads=1),
    "float8": dict(length=[70], cache=F8, kv_heads=1),
    "rotary and norm": dict(length=[20], T=2, rotary=32, norm=True, kv_heads=1),
    "0 to 4096": dict(length=[4095, 0, 257, 1], kv_heads=1),
    "0 to 4096 bfloat16": dict(length=[4095, 0], kv_heads=1, dtype=BF16),
}
CASES = {
    "empty": dict(length=[]),
    "no new token": dict(length=[5, 0, 7], T=2, count=[0, 0, 2]),
    "ragged to 4095": dict(length=[4095, 0, 1, 255, 256, 257, 1000], heads=8),
    "ragged to 4095 bfloat16": dict(length=[4095, 0, 1, 255, 256, 257, 1000], dtype=BF16),
    "ratio 1": dict(length=[300, 17], heads=3, kv_heads=3, dtype=BF16),
    "ratio 3": dict(length=[300, 17], heads=6, kv_heads=2, D=96),
    "ratio 5": dict(length=[513], heads=5, kv_heads=1, D=40),
    "ratio 7": dict(length=[513], heads=14, kv_heads=2, D=72, dtype=BF16),
    "ratio 8": dict(length=[700], heads=8, kv_heads=1, D=128),
    "D 32": dict(length=[700, 3], D=32, dtype=BF16),
    "D 88": dict(length=[700, 3], D=88),
    "D 256": dict(length=[700, 3], D=256),
    "64 tokens": dict(length=[0, 250, 3000], T=64, dtype=BF16),
    "64 tokens, counts": dict(length=[0, 250, 100], T=64, count=[64, 17, 0], heads=6),
    "17 tokens block-causal": dict(length=[250, 0], T=17, causal=False, D=80),
    "window 1": dict(length=[300, 0], T=5, window=1),
    "window 100": dict(length=[1000, 30, 511], T=9, window=100, dtype=BF16),
    "window 300 block-causal": dict(length=[1000], T=40, window=300, causal=False),
    "pages of 1": dict(length=[40, 7], T=3, block=1),
    "pages of 48": dict(length=[700, 0, 255], T=3, block=48),
    "pages of 256 bfloat16": dict(length=[700, 0, 255], block=256, dtype=BF16),
    "rotary": dict(length=[700, 1], T=5, rotary=64),
    "partial rotary and norm": dict(length=[700, 1], T=5, rotary=32, norm=True, D=96),
    "rotary and norm bfloat16": dict(length=[700, 1], T=5, rotary=64, norm=True, dtype=BF16),
    "int8 bfloat16": dict(length=[700, 1], T=2, cache=I8, dtype=BF16, D=80),
    "int8 pages": dict(length=[700, 1], T=2, cache=I8, block=32),
    "float8 bfloat16": dict(length=[700, 1], T=2, cache=F8, dtype=BF16, D=80),
    "float8 window": dict(length=[700, 1], T=2, cache=F8, window=60),
    "float32 queries, bfloat16 cache": dict(length=[700, 1], T=2, cache=BF16),
    "bfloat16 queries, float32 cache": dict(length=[700, 1], T=2, dtype=BF16, cache=F32),
    "scale": dict(length=[300], scale=0.5),
    "one split of many": dict(length=[4000], heads=2, kv_heads=1),
    **SMALL,
}
# Calls whose rows and tokens are taken apart; the interpreter takes the first.
COMPANY = {
    "bfloat16": dict(length=[270, 5, 0], T=2, kv_heads=1, dtype=BF16),
    "float32": dict(length=[700, 256, 0, 31], T=5, heads=6, D=72),
    "float32 window": dict(length=[700, 256, 0, 31], T=5, window=260),
    "int8": dict(length=[700, 256, 0, 31], T=3, cache=I8, count=[3, 1, 2, 0]),
    "float8 pages": dict(length=[700, 256, 0, 31], T=3, cache=F8, block=32),
    "rotary and norm": dict(length=[700, 31], T=3, rotary=64, norm=True, dtype=BF16),
    "many tokens": dict(length=[500, 3], T=33, heads=8, dtype=BF16),
}
