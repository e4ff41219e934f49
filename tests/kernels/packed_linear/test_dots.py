"""The CPU's dot products and matrix tiles against their emulations, to the bit, and that the
library holds the instructions."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections import Counter

import pytest
import torch

from ardiff_kernels import testing
from ardiff_kernels.dispatch import cpu, load
from ardiff_kernels.testing import same_bits
from tests.kernels.packed_linear.calls import BF16, COMPANY, F32, I8, linear_call

HERE = testing.cpu_dots_here()
built = pytest.mark.skipif(not HERE, reason="the C++ kernels are not built")


def wild_call(N: int, dtype: torch.dtype, seed: int = 0):
    """Weights and rows over all the range of float32: subnormal, tiny, huge, zero and negative."""
    call = linear_call(N, columns=200, rows=40, dtype=dtype, seed=seed)
    generator = torch.Generator().manual_seed(seed)

    def powers(shape: torch.Size) -> torch.Tensor:
        return torch.exp2(torch.randint(-70, 60, shape, generator=generator).float())

    call.args["x"] = call.args["x"] * powers(call.args["x"].shape)
    call.args["x"][0, ::3] = 1e-40
    if dtype == BF16:
        weight = call.args["weight"].float()
        call.args["weight"] = (weight * powers(weight.shape)).to(BF16)
    return call


@built
@pytest.mark.parametrize("way", ["avx512_bf16", "amx"])
@pytest.mark.parametrize("dtype", [BF16, I8], ids=str)
@pytest.mark.parametrize("N", [1, 2, 3, 6, 17, 33])
def test_instructions_equal_their_emulation(way, dtype, N):
    if way not in HERE:
        pytest.skip("this CPU lacks them; the emulation is tested against float64")
    for call in (
        linear_call(N, columns=330, rows=90, dtype=dtype),
        *(wild_call(N, dtype, seed) for seed in range(5)),
    ):
        with testing.cpu_dots(way):
            found = call.functional()
        with testing.cpu_dots(f"emulated_{way}"):
            assert same_bits(found, call.functional())


@built
def test_the_wild_numbers_tell_wrong_roundings_apart():
    """Negative control: without flushed subnormals and with sums in another order, as the common
    way and the tiles have them, the bits are others."""
    call = wild_call(6, BF16)
    found = {}
    for way in ("common", "emulated_avx512_bf16", "emulated_amx"):
        with testing.cpu_dots(way):
            found[way] = call.functional()
    names = list(found)
    for one, other in zip(names, names[1:] + names[:1], strict=True):
        assert not same_bits(found[one], found[other])


@built
@pytest.mark.parametrize("name", COMPANY)
def test_sums_of_integers_are_the_same_in_every_way(name):
    call = linear_call(**{**COMPANY[name], "dtype": I8})
    found = []
    for way in HERE:
        if way != "common":
            with testing.cpu_dots(way):
                found.append(call.functional())
    assert len(found) >= 2 and all(same_bits(each, found[0]) for each in found)


@built
def test_float32_weights_have_one_way():
    call = linear_call(9, columns=330, rows=90, dtype=F32)
    expected = call.functional()
    for way in HERE:
        with testing.cpu_dots(way):
            assert same_bits(call.functional(), expected)


@built
def test_an_older_instruction_set_multiplies_in_the_common_way():
    call = linear_call(9, columns=330, rows=90, dtype=BF16)
    with testing.cpu_dots("common"):
        expected = call.functional()
    for isa in testing.cpu_isas():
        with testing.cpu_isa(isa):
            if isa != "avx512":
                assert cpu.current_dots() == "common" and same_bits(call.functional(), expected)


@built
@pytest.mark.parametrize("columns", [65536, 65600])
def test_sums_that_32_bits_may_not_hold_are_of_floats(columns):
    """All of the largest magnitude: a sum of so many products of bytes overflows."""
    call = linear_call(2, columns=columns, rows=16, dtype=I8)
    call.args["x"] = torch.ones(2, columns)
    call.args["weight"] = torch.full_like(call.args["weight"], 127)
    call.options["scale"] = torch.ones(16)
    expected = torch.full((2, 16), 127.0 * columns)
    for way in HERE:
        with testing.cpu_dots(way):
            torch.testing.assert_close(call.functional(), expected, rtol=1e-5, atol=0)


INSTRUCTIONS = {
    "avx512_bf16": {"vdpbf16ps": 50, "vpdpbusd": 50},
    "amx": {"tdpbf16ps": 4, "tdpbssd": 4},
}


@built
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the instructions are of x86")
@pytest.mark.skipif(not shutil.which("objdump"), reason="objdump was not found")
def test_the_library_holds_the_instructions():
    """A build that lost them would give rounded results all the same, slowly."""
    command = ["objdump", "-d", "-C", "--no-show-raw-insn", str(load.CPU.path)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: Counter = Counter()
    way = ""
    for line in listing.splitlines():
        if line.endswith(">:"):
            named = re.search(r"ardiff::(avx512_bf16|amx)::", line)
            way = named[1] if named else ""
        elif way:
            found[way, line.split("\t")[-1].split(" ")[0]] += 1
    for way, least in INSTRUCTIONS.items():
        short = {name: found[way, name] for name, n in least.items() if found[way, name] < n}
        assert not short, way
