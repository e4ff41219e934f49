"""The CUDA kernel of `mala_accept` run on the host, phase by phase over all threads of a block in
both orders (csrc/cuda/phases.cuh): bit for bit the C++ CPU library's results, and within the bound
of the float64 reference."""

import ctypes

import pytest
import torch

import ardiff_kernels
from ardiff_kernels.dispatch import load
from tests import ROOT
from tests._support import build_cache
from tests.kernels.mala_accept.calls import (
    ROWS,
    accept_call,
    assert_same,
    check,
    check_energies,
    energies_call,
)

NAMESPACE = "ardiff_accept_on_host"
FLAGS = [
    *("-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-w", "-DTORCH_STABLE_ONLY"),
    "-DTORCH_TARGET_VERSION=0x020A000000000000",
    *(f"-DARDIFF_CUDA_NAMESPACE={NAMESPACE}", "-DARDIFF_CUDA_KEY=CPU"),
]
# One to 32 groups of threads per sample, then several rounds of them.
SHAPES = [(1, 1), (70, 5), (33, 64), (9, 257), (5, 1000), (3, 5000), (2, 8192), (2, 40003)]
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


class Walked:
    """The ops of the CUDA source on CPU tensors, threads one after the other in either order."""

    def __init__(self, library):
        self.library, self.backwards = ctypes.CDLL(library), False

    def __getattr__(self, op):
        self.library.ardiff_walk(1, 0, ctypes.c_bool(self.backwards), ctypes.c_bool(True))
        return getattr(getattr(torch.ops, NAMESPACE), op)


@pytest.fixture(scope="module")
def on_host():
    cxx = build_cache.find_compiler()
    if cxx is None:
        pytest.skip("no C++ compiler was found")
    source = ROOT / "csrc/cuda/mala_accept/mala_accept.cu"
    library = build_cache.host_library(cxx, "mala_accept_on_host", source, FLAGS)
    definitions = torch.library.Library(NAMESPACE, "DEF")
    for name in ("mala_accept", "mala_accept_"):
        schema = str(getattr(torch.ops.ardiff, name).default._schema)
        definitions.define(schema.removeprefix("ardiff::"))
    torch.ops.load_library(str(library))
    yield Walked(str(library))
    definitions._destroy()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "correction", "more"),
    [(F32, "trapezoid", False), (BF16, "simpson", True), (F16, "energies", True)],
    ids=str,
)
def test_alike(on_host, shape, dtype, correction, more):
    """Rows of wider buffers, then packed rows: element by element, and in whole units."""
    call = accept_call(*shape, dtype, correction, velocity=more, ball=more)
    call.args["row"][::5] = -1
    call.args["row"][3::7] = len(ROWS)
    for _ in range(2):
        got = call.functional(on_host)
        check(call, got)
        for backwards in (True, False):
            on_host.backwards = backwards
            for a, b in zip(call.in_place(on_host), got, strict=True):
                assert_same(a, b)
        if load.CPU.loaded:
            with ardiff_kernels.backend("cpu"):
                for a, b in zip(got, call.functional(), strict=True):
                    assert_same(a, b)
        call.args = {name: t.clone().contiguous() for name, t in call.args.items()}
        call.options = {name: t.clone().contiguous() for name, t in call.options.items()}


def test_nonfinite_and_dropped_values(on_host):
    call = accept_call(4, 600, velocity=True)
    call.args["coef"] = torch.zeros(1, 20)
    call.args["coef"][0, 7] = 1.0
    call.args["row"].zero_()
    call.args["anchor"][0] = call.args["out_x"][0] = torch.nan
    call.args["out_y"][1, 599] = torch.inf
    call.args["y"][2, 0] = torch.nan
    got = call.functional(on_host)
    assert got[5].isfinite().tolist() == [True, False, False, True]


def test_an_origin_without_density_is_left(on_host):
    call = energies_call(600)
    check_energies(call, call.functional(on_host))
    check_energies(call, call.in_place(on_host))


def test_empty_batch_and_messages(on_host):
    assert accept_call(0, 4).functional(on_host)[0].shape == (0, 4)
    call = accept_call(4, 8)
    call.args["y"] = call.args["y"][:, :7]
    with pytest.raises(
        RuntimeError, match=r"^mala_accept: y must be float32 \[4, 8\], got float32"
    ):
        call.functional(on_host)
