"""The CUDA kernels of heads as a library that runs them on the host, for the tests of their ops."""

from __future__ import annotations

import ctypes
import functools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests import ROOT
from tests._support import build_cache

NAMESPACE = "ardiff_head_on_host"
OPS = {
    "head_step": ("head_step",),
    "head_loop": ("head_loop", "head_loop_"),
    "head_lookahead": ("head_lookahead",),
}
FLAGS = [
    *("-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-w", "-DTORCH_STABLE_ONLY"),
    "-DTORCH_TARGET_VERSION=0x020A000000000000",
    *(f"-DARDIFF_CUDA_NAMESPACE={NAMESPACE}", "-DARDIFF_CUDA_KEY=CPU"),
]
# Blocks of the device, bytes of shared memory of a block, whether blocks and threads go backwards.
USUAL = (3, 32 << 10, False)
DEVICES = [USUAL, (1, 64 << 10, True), (7, 24 << 10, True), (132, 227 << 10, False)]


class Host:
    """The ops of the CUDA sources on CPU tensors, and the device that the host plays."""

    def __init__(self, libraries, definitions):
        self.ops = getattr(torch.ops, NAMESPACE)
        self.libraries = [ctypes.CDLL(str(path)) for path in libraries]
        self.definitions = definitions  # the ops end with it

    def on(self, blocks, memory, backwards, waits=True):
        for library in self.libraries:
            arguments = ctypes.c_int(blocks), ctypes.c_int(memory), ctypes.c_bool(backwards)
            library.ardiff_walk(*arguments, ctypes.c_bool(waits))

    def step(self, call):
        return self.ops.head_step(*call.args.values(), **call.options)


@functools.cache
def _load(cxx: str) -> Host:
    def compile_one(op):
        source = ROOT / f"csrc/cuda/{op}/{op}.cu"
        return build_cache.host_library(cxx, f"{op}_on_host", source, FLAGS)

    with ThreadPoolExecutor(2) as pool:
        libraries = list(pool.map(compile_one, OPS))
    definitions = torch.library.Library(NAMESPACE, "DEF")
    for forms in OPS.values():
        for name in forms:
            schema = str(getattr(torch.ops.ardiff, name).default._schema)
            definitions.define(schema.removeprefix("ardiff::"))
    for library in libraries:
        torch.ops.load_library(str(library))
    return Host(libraries, definitions)


def usual_host() -> Host:
    """The ops on the usual device, compiled once; skips the test where there is no compiler."""
    cxx = build_cache.find_compiler()
    if cxx is None:
        pytest.skip("no C++ compiler was found")
    host = _load(cxx)
    host.on(*USUAL)
    return host
