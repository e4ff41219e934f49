"""Random calls of `kv_append`, what they must write, and rows that do not fit."""

from __future__ import annotations

import math

import torch

from ardiff_kernels.ops.kv_append.reference import LARGEST, rms_norm, rotate
from ardiff_kernels.testing import same_bits
from tests.kernels.kv_attention.calls import BF16, F8, F32, I8, integers, random, unused

APPEND_SMALL = {
    "float32": dict(length=[3, 0], T=2),
    "bfloat16": dict(length=[3, 0], T=2, dtype=BF16),
    "rotary and norm": dict(length=[3], T=2, rotary=32, norm=True, cache=BF16),
    "int8 pages": dict(length=[6, 0], T=3, cache=I8, block=4, rotary=64),
    "float8": dict(length=[3], T=2, cache=F8),
}
APPENDS = {
    "empty": dict(length=[]),
    "counts": dict(length=[9, 0, 300, 2], T=5, count=[5, 0, 3, 1], heads=3, D=40),
    "rotary": dict(length=[9, 0, 300], T=7, rotary=128, D=128, dtype=BF16),
    "partial rotary pages": dict(length=[9, 0, 300], T=7, rotary=34, D=72, block=16, norm=True),
    "prompt": dict(length=[0, 1], T=200, rotary=64, norm=True, cache=BF16),
    "int8 bfloat16": dict(length=[9, 0], T=3, cache=I8, dtype=BF16, norm=True, D=256),
    "float8 pages": dict(length=[9, 31], T=3, cache=F8, block=32, rotary=32, D=32),
    "bfloat16 tokens, float32 cache": dict(length=[9, 0], T=3, dtype=BF16, cache=F32),
    **APPEND_SMALL,
}


def append_call(
    length, T=1, heads=2, D=64, dtype=F32, cache=None, count=None, block=0, rotary=0, norm=False,
    seed=0,
):  # fmt: skip
    """Positional arguments and options; every cache holds NaN."""
    cache = cache or dtype
    rows = len(length)
    most = max((n + T for n in length), default=1)
    size = block or most + 3
    columns = -(-most // size)
    shape = (rows * columns + 2, heads, size, D)
    options = {}
    if count is not None:
        options["count"] = integers(count)
    if block:
        order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(3), device="cpu")
        table = order[: rows * columns].reshape(rows, columns).int()
        options["block_table"] = table.to(torch.get_default_device())
    if rotary:
        angles = torch.arange(most)[:, None] / 50.0 ** (torch.arange(rotary // 2) / rotary)
        options |= {"cos": angles.cos(), "sin": angles.sin()}
    if norm:
        options |= {"k_norm": 1 + 0.1 * random(seed + 7, D), "norm_eps": 1e-5}
    if cache in LARGEST:
        options |= {f"{n}_scale": torch.full(shape[:3], math.nan) for n in "kv"}
    k, v = (random(seed + i, rows, T, heads, D, dtype=dtype) for i in range(2))
    return [k, v, unused(shape, cache), unused(shape, cache), integers(length)], options


def written_places(length, T, count, block_table, size):
    """(row, token, block, place) of every token that is to be written."""
    for b, before in enumerate(length.tolist()):
        for t in range(T if count is None else int(count[b])):
            p = before + t
            yield b, t, b if block_table is None else int(block_table[b, p // size]), p % size


def check_append(args, options, results) -> None:
    """Every written vector against float64, and that the others are untouched."""
    k, v, k_cache, v_cache, length = args
    table, size = options.get("block_table"), k_cache.shape[2]
    cache = k_cache.dtype
    rest = [t.clone() for t in results]
    for b, t, block, place in written_places(length, k.shape[1], options.get("count"), table, size):
        at = place if table is None else int(length[b]) + t
        key = rms_norm(k[b, t].double(), options.get("k_norm"), options.get("norm_eps", 1e-6))
        key = rotate(key[None], torch.tensor([at]), options.get("cos"), options.get("sin"))[0]
        for i, exact in enumerate((key, v[b, t].double())):
            wide = results[i].view(torch.int8) if cache == F8 else results[i]
            found = wide[block, :, place].view(cache).double()
            float32 = 3e-6 * exact.abs().amax(-1, keepdim=True)
            if cache in LARGEST:
                scale = results[2 + i][block, :, place].double()
                assert ((scale * LARGEST[cache] / exact.abs().amax(-1) - 1).abs() < 1e-5).all()
                step = 0.5 * torch.ones_like(exact)
                if cache == F8:
                    magnitude = (exact / scale[:, None]).abs()
                    step = torch.maximum(magnitude * 2.0**-4, torch.tensor(2.0**-10))
                bound = 1.001 * step * scale[:, None] + float32
                found = found * scale[:, None]
                rest[2 + i][block, :, place] = math.nan
            else:
                bound = float32 + (exact.abs() * 2.0**-8 if cache == BF16 else 0)
                if i == 1:
                    assert same_bits(wide[block, :, place], v[b, t].to(cache))
            assert ((found - exact).abs() <= bound).all()
            wide_rest = rest[i].view(torch.int8) if cache == F8 else rest[i]
            untouched = unused((1,), cache)
            wide_rest[block, :, place] = untouched.view(wide_rest.dtype)
    for found, before in zip(rest[:2], (k_cache, v_cache), strict=True):
        assert same_bits(found, before)
    for found in rest[2:]:
        assert found.isnan().all()


WRONG = {
    "negative length": dict(length=[-1, 5, 5]),
    "too long": dict(length=[15, 5, 5]),
    "count too large": dict(count=[3, 2, 1]),
    "negative count": dict(count=[-1, 2, 1]),
    "no such block": dict(table=[[0, 9, 9], [1, 2, 9], [3, 4, 9]]),
    "negative block": dict(table=[[-1, 7, 9], [1, 2, 9], [3, 4, 9]]),
    "no such position": dict(position=[[0, 8], [1, 2], [3, 4]]),
    "negative position": dict(position=[[-1, 0], [1, 2], [3, 4]]),
}


def options_of(
    length=(5, 5, 5), count=None, table=None, position=None
) -> tuple[torch.Tensor, dict]:
    """length, and options; caches are [6, 1, 8, 32], or blocks of 4 of them."""
    found = {"cos": random(8, 8, 4), "sin": random(9, 8, 4)}
    if count is not None:
        found["count"] = integers(count)
    for name, value in (("block_table", table), ("position", position)):
        if value is not None:
            found[name] = torch.tensor(value, dtype=torch.int32)
    return integers(length), found


def assert_left_alone(name: str, kv_append, kv_attention) -> None:
    """Row 0 is wrong: nothing of it is written and its results are zero, the others are served."""
    length, given = options_of(**WRONG[name])
    size = 4 if "block_table" in given else 16
    k_cache, v_cache = random(1, 8, 1, size, 32), random(2, 8, 1, size, 32)
    k, v, q = random(3, 3, 2, 1, 32), random(4, 3, 2, 1, 32), random(5, 3, 2, 2, 32)
    keys, values, *_ = kv_append(k, v, k_cache, v_cache, length, **given)
    others = [given["block_table"][1:].flatten().clamp(max=7)] if size == 4 else [1, 2]
    changed = (keys != k_cache).flatten(1).any(1) | (values != v_cache).flatten(1).any(1)
    assert changed.any() and not changed[0]
    allowed = torch.zeros(8, dtype=torch.bool)
    for index in others:
        allowed[index] = True
    assert not (changed & ~allowed).any()
    out = kv_attention(q, keys, values, length, **given)
    assert (out[0] == 0).all() and (out[1:, 0] != 0).all()
