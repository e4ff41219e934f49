"""The CUDA kernels of `packed_linear` run on the host, phase by phase over all threads of a block,
in both orders (csrc/cuda/phases.cuh): within the error that every implementation may have, and to
the bit whatever the device and a row's company. The sources are built three times: as they are,
with a workspace of one row at a time, and with faults to be found. Shared memory and workspace
begin as NaN."""

from __future__ import annotations

import ctypes
import math
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from ardiff_kernels.testing import same_bits
from tests import ROOT
from tests._support import build_cache
from tests.kernels.packed_linear.calls import (
    BF16,
    CASES,
    COMPANY,
    DTYPES,
    EVERYTHING,
    F32,
    I8,
    LinearCall,
    excess,
    linear_call,
)
from tests.kernels.packed_linear.invalid import INVALID

FLAGS = [
    *("-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-w", "-DTORCH_STABLE_ONLY"),
    *("-DTORCH_TARGET_VERSION=0x020A000000000000", "-DARDIFF_CUDA_KEY=CPU"),
]
# Replacements in csrc/cuda/packed_linear/<file>. Launches of a row change no bit; faults do.
ROW_BY_ROW = [("packed_linear.cu", "kWorkspace = int64_t{1} << 24", "kWorkspace = 1")]
FAULTS = [
    ("kernel.cuh", "range < a.ranges; ++range", "range < a.ranges - 1; ++range"),
    ("slice.cuh", "[1].word[i] = bfloat16_rest(low, high, word)", "[1].word[i] = 0"),
    ("slice.cuh", "begin + s * kWords < a.words;", "s < 7 && begin + s * kWords < a.words;"),
]
REPLACED = {"usual": [], "row_by_row": ROW_BY_ROW, "faulty": FAULTS}
# Multiprocessors of the device, and whether threads go backwards.
USUAL = (3, False)
DEVICES = [(1, True), (132, False), (2, True)]


class Walked:
    """The op of a build, `ardiff_linear_<name>`, and the device that the host plays."""

    def __init__(self, name: str, library: str) -> None:
        self.namespace = getattr(torch.ops, f"ardiff_linear_{name}")
        self.library = ctypes.CDLL(library)

    def __call__(self, call: LinearCall, device: tuple[int, bool] = USUAL) -> torch.Tensor:
        blocks, backwards = device
        # Libraries of one process may share the state, so that each call sets it.
        self.library.ardiff_walk(blocks, 0, ctypes.c_bool(backwards), ctypes.c_bool(True))
        return call.functional(self.namespace)


def build(cxx: str, name: str, folder: Path) -> str:
    sources = Path(shutil.copytree(ROOT / "csrc", folder / name))
    for file, text, other in REPLACED[name]:
        path = sources / "cuda/packed_linear" / file
        assert path.read_text().count(text) == 1
        path.write_text(path.read_text().replace(text, other))
    flags = [*FLAGS, f"-DARDIFF_CUDA_NAMESPACE=ardiff_linear_{name}"]
    source = sources / "cuda/packed_linear/packed_linear.cu"
    return str(
        build_cache.host_library(cxx, f"packed_linear_{name}_on_host", source, flags, root=sources)
    )


@pytest.fixture(scope="module")
def libraries(tmp_path_factory) -> Iterator[dict[str, Walked]]:
    cxx = build_cache.find_compiler()
    if cxx is None:
        pytest.skip("no C++ compiler was found")
    folder = tmp_path_factory.mktemp("packed_linear_on_host")
    with ThreadPoolExecutor(2) as pool:
        built = list(pool.map(lambda name: build(cxx, name, folder), REPLACED))
    kept, found = [], {}
    schema = str(torch.ops.ardiff.packed_linear.default._schema).removeprefix("ardiff::")
    for name, library in zip(REPLACED, built, strict=True):
        kept.append(torch.library.Library(f"ardiff_linear_{name}", "DEF"))
        kept[-1].define(schema)
        torch.ops.load_library(library)
        found[name] = Walked(name, library)
    yield found
    for definitions in kept:
        definitions._destroy()


@pytest.fixture
def on_host(libraries) -> Walked:
    return libraries["usual"]


@pytest.mark.parametrize("name", CASES)
def test_values_on_any_device(libraries, name):
    call = linear_call(**CASES[name])
    found = libraries["usual"](call)
    assert excess(found, call) <= 1
    for device in DEVICES:
        assert same_bits(libraries["usual"](call, device), found)
    assert same_bits(libraries["row_by_row"](call), found)


WIDE = {
    "several panels a block": dict(N=3, columns=70, rows=600),
    "several pairs a block": dict(N=3, columns=70, rows=640, activation="swiglu"),
    "several of 32 rows": dict(N=40, columns=70, rows=600),
    "several of long rows": dict(N=9, columns=1500, rows=600),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", WIDE)
def test_wide_matrices(on_host, name, dtype):
    """On small devices a block takes all the panels that it can; on a large one, one."""
    call = linear_call(**WIDE[name], dtype=dtype, norm=True)
    found = on_host(call)
    assert excess(found, call) <= 1
    for device in DEVICES:
        assert same_bits(on_host(call, device), found)


@pytest.mark.parametrize("name", COMPANY)
def test_a_row_has_the_same_bits_in_any_company(on_host, name):
    """Alone, doubled, in another order, and in parts of any size."""
    call = linear_call(**COMPANY[name])
    together, N = on_host(call), len(call.args["x"])
    for n in (0, N // 2, N - 1):
        assert same_bits(on_host(call.rows([n])), together[[n]])
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    order = torch.cat([order, order[:3]])
    assert same_bits(on_host(call.rows(order)), together[order])
    for count in range(1, N):
        assert same_bits(on_host(call.rows(list(range(count)))), together[:count])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("x", [F32, BF16], ids=str)
def test_alignment_does_not_matter(on_host, x, dtype):
    """x, gate and residual that begin at odd elements, or whose rows lie apart, element by element;
    their alignment allows 128 bits in the other call."""
    call = linear_call(5, columns=72, rows=40, dtype=dtype, x=x, **EVERYTHING)
    names = ("x", "gate", "residual")
    given = {**call.args, **call.options}
    expected = on_host(call.changed(**{name: given[name].contiguous() for name in names}))
    assert same_bits(on_host(call), expected)
    moved = {}
    for name in names:
        wide = torch.full((5, given[name].shape[1] + 5), torch.nan, dtype=given[name].dtype)
        wide[:, 1:-4] = given[name]
        moved[name] = wide[:, 1:-4]
    assert same_bits(on_host(call.changed(**moved)), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite_spoils_no_other_row(on_host, dtype):
    call = linear_call(12, columns=75, rows=40, dtype=dtype, **EVERYTHING)
    clean = on_host(call)
    for value in (math.nan, math.inf):
        call.args["x"][5, 7] = value
        spoilt = on_host(call)
        keep = [n for n in range(12) if n != 5]
        assert not spoilt[5].isfinite().any() and same_bits(spoilt[keep], clean[keep])


@pytest.mark.parametrize(
    "case",
    [
        dict(N=3, columns=1100, rows=40),
        dict(N=3, columns=1100, rows=40, dtype=BF16),
        dict(N=3, columns=75, rows=40, dtype=I8),
        dict(N=3, columns=120, rows=40, dtype=BF16),
    ],
    ids=["range", "range of bfloat16", "rest of an element", "last step of a slice"],
)
def test_a_fault_is_noticed(libraries, case):
    """Negative control: a range left out, an element of x in one part, a step left out."""
    call = linear_call(**case)
    assert excess(libraries["usual"](call), call) <= 1 < excess(libraries["faulty"](call), call)


@pytest.mark.parametrize("name", INVALID)
def test_messages_are_those_of_the_other_backends(on_host, name):
    invalid, message = INVALID[name]
    with pytest.raises(RuntimeError, match="^" + re.escape(f"packed_linear: {message}")):
        invalid(on_host.namespace.packed_linear.default)


def test_a_weight_that_is_not_aligned_is_refused(on_host):
    call = linear_call(2, dtype=I8)
    weight = call.args["weight"]
    whole = torch.empty(weight.numel() + 1, dtype=torch.int8)[1:].view(weight.shape)
    call.args["weight"] = whole.copy_(weight)
    with pytest.raises(RuntimeError, match="begins at a multiple of 16 bytes; call weight.clone"):
        on_host(call)
