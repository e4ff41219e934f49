"""The CPU kernels give the same bits on every instruction set, and the vector ones use vectors."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest
import torch

from ardiff_kernels import testing
from ardiff_kernels.dispatch import load
from ardiff_kernels.ops._shared.address import philox_words
from tests._support.isa_agreement import disagreements

ISAS = testing.cpu_isas()
VECTOR_ISAS = [name for name in ISAS if name != "scalar"]
needs_vectors = pytest.mark.skipif(not VECTOR_ISAS, reason="no vector instruction set here")


@needs_vectors
@pytest.mark.parametrize("isa", VECTOR_ISAS)
def test_bits_agree_with_scalar(isa):
    count, different = disagreements("scalar", isa)
    assert count > 300
    assert not different


@pytest.mark.skipif(not ISAS, reason="the C++ CPU kernels are not built")
@pytest.mark.parametrize("isa", ISAS)
def test_words_are_the_references(isa):
    key, counter, stream = -0x7FED_CBA9_8765_4321, 2**32 - 4, 2**62 + 2**33 + 5
    quads, address = torch.arange(1003), (torch.tensor([counter]), torch.tensor([stream]))
    expected = torch.stack(philox_words(quads, *address, torch.tensor([key])), -1)
    with testing.cpu_isa(isa):
        assert torch.equal(testing.cpu_philox_words(key, counter, stream, 1003), expected)


REGISTERS = {"avx512": "zmm", "avx2": "ymm"}
# Instructions of float arithmetic in whole registers that each kernel has at least, on either
# instruction set: about two thirds of what g++ makes. `ardiff bench ops` says what they bring.
WHOLE = {
    "UldArgs": 64, "UldBackwardArgs": 26, "DiffusionArgs": 170, "DiffusionBackwardArgs": 120,
    "AcceptArgs": 1000, "KvAttentionArgs": 600, "KvAppendArgs": 26, "HeadStepArgs": 24,
}  # fmt: skip
ARITHMETIC = re.compile(r"\tv?(?:add|sub|mul|div|sqrt|fn?m(?:add|sub)\d+)ps\s.*%([xyz]mm)")


def packed_arithmetic(listing: str) -> Counter:
    """Instructions on several floats at once, by instruction set, the arguments that name the
    kernel, and the registers, in what ``objdump -d -C`` prints."""
    found: Counter = Counter()
    place = None
    for line in listing.splitlines():
        if line.endswith(">:"):
            isa = re.search(r"<.*?\bardiff::(scalar|avx2|avx512)::", line)
            kernel = re.search(r"\b(\w+Args)\b", line)
            place = (isa[1], kernel[1]) if isa and kernel else None
        elif place and (instruction := ARITHMETIC.search(line)):
            found[(*place, instruction[1])] += 1
    return found


@pytest.mark.skipif(not ISAS, reason="the C++ CPU kernels are not built")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="vector kernels are for x86")
@pytest.mark.skipif(not shutil.which("objdump"), reason="objdump was not found")
def test_kernels_compute_in_whole_registers():
    """A loop that the compiler no longer turns into vectors would give the same bits, slowly."""
    command = ["objdump", "-d", "-C", "--no-show-raw-insn", str(load.CPU.path)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = packed_arithmetic(listing)
    for isa, registers in REGISTERS.items():
        short = {
            k: found[isa, k, registers] for k, n in WHOLE.items() if found[isa, k, registers] < n
        }
        assert not short, isa
    wide = {key: count for key, count in found.items() if key[0] == "scalar" and key[2] != "xmm"}
    assert not wide


def test_packed_arithmetic_is_counted():
    listing = """
00 <ardiff::avx512::uld_step_tiles(ardiff::Tiled<ardiff::UldArgs> const&, long, long)>:
    10:\tvfmadd213ps %zmm1,%zmm2,%zmm3
    11:\tvmulps (%rax){1to16},%zmm2,%zmm3
    12:\tvmulss %xmm1,%xmm2,%xmm3
    13:\tvmovups %zmm1,(%rax)
00 <ardiff::scalar::uld_step_tiles(ardiff::Tiled<ardiff::UldArgs> const&, long, long)>:
    10:\tmulps  %xmm1,%xmm2
00 <other::uld_step(ardiff::UldArgs const&)>:
    10:\tvmulps %zmm1,%zmm2,%zmm3
"""
    expected = {("avx512", "UldArgs", "zmm"): 2, ("scalar", "UldArgs", "xmm"): 1}
    assert packed_arithmetic(listing) == expected


@pytest.mark.skipif(not ISAS, reason="the C++ CPU kernels are not built")
@pytest.mark.parametrize("name", ["avx1024", "avx512"])
def test_an_instruction_set_that_cannot_be_had(name):
    if name in ISAS:
        pytest.skip("this CPU has it")
    code = (
        "import torch, ardiff_kernels; one = torch.tensor([1]); "
        "ardiff_kernels.ops.philox_normal(one, 0, one, 4)"
    )
    environment = {**os.environ, "ARDIFF_CPU_ISA": name}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    message = f'RuntimeError: ARDIFF_CPU_ISA is "{name}", but this CPU can run scalar'
    assert message in done.stderr.splitlines()[-1]
