"""Runs the ops on two instruction sets and compares every bit.

A script too: `python isa_agreement.py scalar avx512` prints the number of cases, or fails.
"""

from __future__ import annotations

import itertools
import sys

import torch
from torch import Tensor

from ardiff_kernels import testing

# Single elements, odd sizes, whole tiles (512 elements) and their edges, many small samples.
SHAPES = [(1, 1), (3, 5), (7, 16), (130, 4), (33, 3), (600, 1), (2, 513), (5, 100), (1, 2050)]
OUTPUTS = (torch.float32, torch.float16, torch.bfloat16)


def common(rows: int, d: int, width: int, dtype: torch.dtype, case: int) -> dict[str, Tensor]:
    """Options of case 0 to 3: none, guided, three-way, given noise; all with several rows."""
    options = {}
    if case in (1, 2):
        options["uncond_out"] = torch.randn(rows, width).to(dtype)
        options["guidance"] = torch.randn(rows)
    if case == 2:
        options["uncond_out2"] = torch.randn(rows, width).to(dtype)
        options["guidance2"] = torch.randn(1)
    if case in (0, 2):
        options["noise_scale"] = torch.rand(rows).round(decimals=1)
    if case == 3:
        options["noise"] = torch.randn(rows, d)
    return options


def table(length: int) -> Tensor:
    """Random rows with a third of the coefficients zero and values that underflow and vanish."""
    coef = torch.randn(length, 20)
    coef[torch.rand(length, 20) < 0.35] = 0.0
    return coef


def arguments(rows: int, case: int) -> list[Tensor]:
    length = 4
    return [
        table(length),
        torch.randint(-1, length + 1, (rows if case % 2 else 1,), dtype=torch.int32),
        torch.randint(0, 2**31 - 1, (rows if case < 2 else 1,), dtype=torch.int32),
        torch.randint(-(2**62), 2**62, (1,)),
        torch.randint(-(2**62), 2**62, (rows,)),
    ]


def uld(rows: int, d: int, dtype: torch.dtype, case: int) -> tuple[Tensor, ...]:
    z, v, anchor = torch.randn(3, rows, d)
    out = torch.randn(rows, d).to(dtype)
    v[0, d // 2] = float("nan")
    options = common(rows, d, d, dtype, case)
    if case == 3:
        options["noise2"] = torch.randn(rows, d)
    rest = arguments(rows, case)
    results = torch.ops.ardiff.uld_step.default(z, v, out, anchor, *rest, **options)
    model = torch.empty(rows, d, dtype=torch.bfloat16)
    torch.ops.ardiff.uld_step_.default(z, v, out, anchor, *rest, **options, z_model=model)
    return *results, z, v, anchor, model


def diffusion(rows: int, d: int, dtype: torch.dtype, case: int) -> tuple[Tensor, ...]:
    state = torch.bfloat16 if case in (1, 3) else torch.float32
    x = torch.randn(rows, d).to(state)
    memory = torch.randn(rows, (1, 2, 3, 3)[case] * d).to(state)
    width = 2 * d if case % 2 else d
    out = torch.randn(rows, width).to(dtype)
    out[-1, -1] = float("inf")
    options = common(rows, d, width, dtype, case)
    clamp = 0.7 if case in (0, 1) else None
    rest = arguments(rows, case)
    step, step_ = torch.ops.ardiff.diffusion_step.default, torch.ops.ardiff.diffusion_step_.default
    results = step(x, out, memory, *rest, **options, x0_clamp=clamp)
    x0, model = torch.empty_like(x), torch.empty(rows, d, dtype=torch.bfloat16)
    step_(x, out, memory, *rest, **options, x0_clamp=clamp, x0=x0, z_model=model)
    return *results, x, memory, x0, model


def gradients(rows: int, d: int, dtype: torch.dtype, case: int) -> tuple[Tensor, ...]:
    """Both backward ops; a NaN, an infinity and values past float16 among the gradients."""
    wide, memories = case % 2 == 1, (1, 2, 3, 3)[case]
    state = torch.bfloat16 if case in (1, 3) else torch.float32
    grads = [torch.randn(rows, d * (memories if i == 1 else 1)) for i in range(3)]
    grads[0][0, d // 2], grads[1][-1, 0] = float("nan"), float("inf")
    grads[2][0] *= 1e5
    coef, row, *address = arguments(rows, case)
    options = common(rows, d, 2 * d if wide else d, dtype, case)
    weights = {k: options[k] for k in ("guidance", "guidance2", "noise_scale") if k in options}
    narrow = [g[:, :d].contiguous() for g in grads]
    uld_backward = torch.ops.ardiff.uld_step_backward.default
    results = uld_backward(*narrow, coef, row, **weights, dtype=dtype)
    if case == 3:
        grads[2] = None
    grads = [None if g is None else g.to(state) for g in grads]
    x, out = torch.randn(rows, d).to(state), torch.randn(rows, 2 * d if wide else d).to(dtype)
    clamp = 0.7 if case in (0, 1) else None
    step_backward = torch.ops.ardiff.diffusion_step_backward.default
    inputs = (x, out, coef, row, row[:1].abs(), *address[1:])
    more = step_backward(*grads, *inputs, **options, x0_clamp=clamp, memories=memories)
    return *results, *more


def normals(rows: int, d: int, dtype: torch.dtype, case: int) -> tuple[Tensor, ...]:
    key, stream = torch.randint(-(2**62), 2**62, (1,)), torch.randint(-(2**62), 2**62, (rows,))
    return (torch.ops.ardiff.philox_normal.default(key, 2**32 - 1 - case, stream, d),)


def increments(rows: int, d: int, dtype: torch.dtype, case: int) -> tuple[Tensor, ...]:
    key, stream = torch.randint(-(2**62), 2**62, (1,)), torch.randint(-(2**62), 2**62, (rows,))
    times = torch.exp2(70 * torch.rand(2, rows) - 38)
    return (torch.ops.ardiff.brownian_increment.default(key, stream, *times, d),)


def words(rows: int, d: int, dtype: torch.dtype, case: int) -> tuple[Tensor, ...]:
    """The Philox words of as many quads as the shape has elements, at random addresses."""
    key, stream = torch.randint(-(2**62), 2**62, (2,)).tolist()
    return (testing.cpu_philox_words(key, 2**32 - 1 - case, stream, rows * d),)


def attention(rows: int, d: int, dtype: torch.dtype, case: int) -> tuple[Tensor, ...]:
    """kv_append and kv_attention; float32 or bfloat16 tokens, a type of cache for each case."""
    cache = (torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn)[case]
    dim, tokens, rows = (32, 40, 72, 128)[d % 4], 1 + d % 7, min(rows, 3)
    dtype = torch.float32 if dtype == torch.float16 else dtype
    before = torch.randint(0, min(d, 600) + 1, (rows,), dtype=torch.int32)
    capacity = min(d, 600) + tokens
    shape = (rows, 2, capacity, dim)
    history = (torch.randn(rows, capacity, 2, dim).to(dtype) for _ in range(2))
    caches = [torch.zeros(shape).to(cache) for _ in range(2)]
    scales = {f"{n}_scale": torch.zeros(shape[:3]) for n in "kv" if case >= 2}
    rotary = {"cos": torch.randn(capacity, dim // 4), "sin": torch.randn(capacity, dim // 4)}
    norm, count = torch.rand(dim), before + tokens
    torch.ops.ardiff.kv_append_.default(
        *history, *caches, before * 0, count=count, **rotary, k_norm=norm, **scales
    )
    q = torch.randn(rows, tokens, 2 * (1 + d % 5), dim).to(dtype)
    options = {"window": d % 50, "causal": case != 1, "q_norm": norm, **rotary, **scales}
    found = torch.ops.ardiff.kv_attention.default(q, *caches, before, **options)
    return *caches, *scales.values(), found


def disagreements(first: str, second: str) -> tuple[int, list[str]]:
    """Number of cases compared, and those in which a result differs in any bit."""
    found, count = [], 0
    for op, (rows, d), dtype, case in itertools.product(
        (words, uld, diffusion, gradients, normals, increments, attention),
        SHAPES,
        OUTPUTS,
        range(4),
    ):
        results = []
        for isa in (first, second):
            torch.manual_seed(count)
            with testing.cpu_dots("common"), testing.cpu_isa(isa):
                results.append([testing.bits(t) for t in op(rows, d, dtype, case)])
        if not all(torch.equal(a, b) for a, b in zip(*results, strict=True)):
            found.append(f"{op.__name__} [{rows}, {d}] {dtype} case {case}")
        count += 1
    return count, found


if __name__ == "__main__":
    compared, different = disagreements(*sys.argv[1:3])
    print(compared, *different, sep="\n")
    sys.exit(bool(different))
