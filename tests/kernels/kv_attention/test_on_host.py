"""The CUDA kernels of `kv_append` and `kv_attention` run on the host (csrc/cuda/phases.cuh): each
phase over all threads of a block, copies done when they are waited for. The sources are built three
times: with threads walked forwards, backwards in small launches, and with faults to be found."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import ardiff_kernels
from ardiff_kernels.dispatch import load
from tests import ROOT
from tests._support import build_cache
from tests.kernels.kv_append.calls import (
    APPENDS,
    WRONG,
    append_call,
    assert_left_alone,
    check_append,
)
from tests.kernels.kv_attention.calls import (
    BF16,
    CASES,
    COMPANY,
    F8,
    F32,
    I8,
    Call,
    assert_nan_scale_reaches_those_that_see_it,
    assert_overflow_weighs_nothing,
    attention_call,
    excess,
    same_bits,
)

FLAGS = [
    *("-std=c++17", "-Og", "-ffp-contract=off", "-fPIC", "-w", "-DTORCH_STABLE_ONLY"),
    *("-DTORCH_TARGET_VERSION=0x020A000000000000", "-DARDIFF_CUDA_KEY=CPU"),
]
# Replacements in csrc/cuda/kv_attention/<file>. Blocks that take all splits and a launch per row
# change no bit; faults do, each where its test says.
SMALL_LAUNCHES = {
    "blocks": ("kv_attention.cu", "kEnoughBlocks = 1 << 15", "kEnoughBlocks = 1"),
    "workspace": ("kv_attention.cu", "kWorkspace = int64_t{1} << 26", "kWorkspace = 1"),
}
FAULTS = {
    "merge": ("merge.cuh", "exp_limited(a.high[slot] - high)", "1.0f"),
    "mask": ("kernel.cuh", "real ? t : 0);", "real ? job.t_last : 0);"),
    "phase": ("kernel.cuh", "if (!prepared && a.head.norm) sum_squares(a, shared, thread);",
              ""),
    "race": ("kernel.cuh", "if (!prepared) prepare_query(",
             "if (!prepared) sum_squares(a, shared, thread), prepare_query("),
    "wait": ("kernel.cuh", "state.copies.template wait<1>();\n      });\n      prepared",
             "if (a.D != 40) state.copies.template wait<1>();\n      });\n      prepared"),
}  # fmt: skip
REPLACED = {"forwards": {}, "backwards": SMALL_LAUNCHES, "faulty": FAULTS}


class Walked:
    """The ops of a build, `ardiff_kv_<name>`, in the order of threads that its name says."""

    def __init__(self, name: str, library: str) -> None:
        self.backwards = name == "backwards"
        self.ops, self.library = getattr(torch.ops, f"ardiff_kv_{name}"), ctypes.CDLL(library)

    def __getattr__(self, op: str):
        # Libraries of one process may share the state, so that each call sets it.
        self.library.ardiff_walk(1, 0, ctypes.c_bool(self.backwards), ctypes.c_bool(True))
        return getattr(self.ops, op)


def build(cxx: str, name: str, folder: Path) -> str:
    """A library with the ops under a namespace of their own, `ardiff_kv_<name>`."""
    sources = Path(shutil.copytree(ROOT / "csrc", folder / name))
    for file, text, other in REPLACED[name].values():
        path = sources / "cuda/kv_attention" / file
        assert path.read_text().count(text) == 1
        path.write_text(path.read_text().replace(text, other))
    both = sources / "both.cpp"  # torch's headers are read once
    both.write_text(
        '#include "cuda/kv_append/kv_append.cu"\n#include "cuda/kv_attention/kv_attention.cu"\n'
    )
    flags = [*FLAGS, f"-DARDIFF_CUDA_NAMESPACE=ardiff_kv_{name}"]
    return str(build_cache.host_library(cxx, f"kv_{name}_on_host", both, flags, root=sources))


@pytest.fixture(scope="module")
def libraries(tmp_path_factory) -> Iterator[dict]:
    cxx = build_cache.find_compiler()
    if cxx is None:
        pytest.skip("no C++ compiler was found")
    folder = tmp_path_factory.mktemp("kv_on_host")
    with ThreadPoolExecutor(2) as pool:
        built = list(pool.map(lambda name: build(cxx, name, folder), REPLACED))
    kept, found = [], {}
    for name, library in zip(REPLACED, built, strict=True):
        definitions = torch.library.Library(f"ardiff_kv_{name}", "DEF")
        for op in ("kv_append", "kv_append_", "kv_attention"):
            schema = str(getattr(torch.ops.ardiff, op).default._schema)
            definitions.define(schema.removeprefix("ardiff::"))
        torch.ops.load_library(library)
        kept.append(definitions)
        found[name] = Walked(name, library)
    yield found
    for definitions in kept:
        definitions._destroy()


@pytest.fixture
def on_host(libraries):
    return libraries["forwards"]


def attend(ops, call: Call) -> torch.Tensor:
    return ops.kv_attention(call.q, call.k_cache, call.v_cache, call.length, **call.options)


@pytest.mark.parametrize("name", sorted({*CASES} - {"64 tokens"}))  # long, and like others
def test_attention(libraries, name):
    """Against float64; backwards, and in other launches, to the bit."""
    call = attention_call(**CASES[name])
    found = attend(libraries["forwards"], call)
    assert excess(found, call) <= 1
    assert same_bits(attend(libraries["backwards"], call), found)


@pytest.mark.parametrize("name", COMPANY)
def test_company_capacity_and_tokens_give_the_same_bits(on_host, name):
    call = attention_call(**COMPANY[name])
    together = attend(on_host, call)
    assert same_bits(attend(on_host, attention_call(**COMPANY[name], capacity=1024)), together)
    for b in range(len(call.q)):
        assert same_bits(attend(on_host, call.row(b)), together[b : b + 1])
    for t in range(call.q.shape[1]):
        assert same_bits(attend(on_host, call.token(t)), together[:, t : t + 1])


@pytest.mark.parametrize("block", [1, 16, 48, 256])
def test_pages_give_the_bits_of_a_contiguous_cache(on_host, block):
    for cache in (BF16, I8):
        call, paged = (
            attention_call([300, 9], T=2, kv_heads=1, dtype=BF16, cache=cache, block=n)
            for n in (0, block)
        )
        assert same_bits(attend(on_host, call), attend(on_host, paged))


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("cache", [F32, BF16, I8], ids=str)
def test_alignment_does_not_matter(on_host, dtype, cache):
    """Queries and caches that begin at odd elements, element by element."""
    call = attention_call([300, 3], T=2, dtype=dtype, cache=cache, D=72, rotary=32, norm=True)
    expected = attend(on_host, call)
    wide = torch.full((2, 2, 4, 75), torch.nan, dtype=dtype)
    wide[..., 1:73] = call.q
    call.q = wide[..., 1:73]
    for name in ("k_cache", "v_cache"):
        whole = getattr(call, name)
        shifted = torch.empty(whole.numel() + 1, dtype=cache)[1:].view(whole.shape)
        setattr(call, name, shifted.copy_(whole))
    assert same_bits(attend(on_host, call), expected)


def test_a_nan_key_reaches_only_the_queries_that_see_it(on_host):
    call = attention_call([20], T=3, heads=2, kv_heads=1)
    clean = attend(on_host, call)
    call.k_cache[0, 0, 22] = call.v_cache[0, 0, 22] = torch.nan
    spoilt = attend(on_host, call)
    assert same_bits(spoilt[:, :2], clean[:, :2]) and spoilt[:, 2].isnan().all()


def test_what_is_not_finite(on_host):
    def run(call):
        return attend(on_host, call)

    assert_overflow_weighs_nothing(run)
    for cache in (I8, F8):
        for part in ("k_scale", "v_scale"):
            assert_nan_scale_reaches_those_that_see_it(run, cache, part)
    for key in (torch.inf, torch.nan):
        call = attention_call([300], heads=2, kv_heads=1, D=32)
        call.q = call.q.abs()
        call.k_cache[0, 0, 7] = key
        assert run(call).isnan().all()


FAULTY = {
    "none of them": dict(length=[100]),
    "merge": dict(length=[700]),
    "mask": dict(length=[100], T=2),
    "phase": dict(length=[100], norm=True),
    "wait": dict(length=[5], D=40),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_fault_is_found(libraries, name):
    """Negative control: splits that are not weighed, queries that see what the last one sees, sums
    read in the phase that makes them, keys that are not waited for."""
    call = attention_call(**FAULTY[name])
    found = attend(libraries["faulty"], call)
    good = bool(found.isfinite().all()) and excess(found, call) <= 1
    assert good == (name == "none of them")


@pytest.mark.parametrize("name", APPENDS)
def test_append(libraries, name):
    """Against float64; backwards, in place and on the CPU library to the bit."""
    args, options = append_call(**APPENDS[name])
    results = libraries["forwards"].kv_append(*args, **options)
    check_append(args, options, results)
    for a, b in zip(libraries["backwards"].kv_append(*args, **options), results, strict=True):
        assert same_bits(a, b)
    if load.CPU.loaded:
        with ardiff_kernels.backend("cpu"):
            expected = torch.ops.ardiff.kv_append(*args, **options)
        for a, b in zip(results, expected, strict=True):
            assert same_bits(a, b)
    libraries["forwards"].kv_append_(*args, **options)
    written = [*args[2:4], *(options[f"{n}_scale"] for n in "kv" if f"{n}_scale" in options)]
    for a, b in zip(written, results, strict=False):
        assert same_bits(a, b)


@pytest.mark.parametrize("name", WRONG)
def test_a_row_that_does_not_fit_is_left_alone(on_host, name):
    assert_left_alone(name, on_host.kv_append, on_host.kv_attention)


def test_messages_read_as_on_the_cpu(on_host):
    args, options = append_call([3, 0], T=2)
    with pytest.raises(RuntimeError, match=r"^kv_append: v must be float32 \[2, 2, 2, 64\] as k"):
        on_host.kv_append(args[0], args[1].bfloat16(), *args[2:], **options)
    call = attention_call([5])
    with pytest.raises(RuntimeError, match="^kv_attention: window must be at least 0, got -1"):
        on_host.kv_attention(call.q, call.k_cache, call.v_cache, call.length, window=-1)
