"""The CPU kernels give the same bits on every instruction set, and the vector ones are fast."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import torch

from ardiff_kernels import testing
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


@needs_vectors
@pytest.mark.parametrize("isa", VECTOR_ISAS)
def test_vectors_are_fast(isa):
    """Processor time of one thread, least of a few runs: at least 3x less than scalar."""
    n = 2**16
    args = [torch.randn(1, n) for _ in range(4)]
    args += [torch.full((1, 16), 0.1), *torch.zeros(2, 1, dtype=torch.int32)]
    args += [torch.tensor([1]), torch.tensor([2])]

    def least(name: str) -> float:
        times = []
        with testing.cpu_isa(name):
            for _ in range(7):
                start = time.thread_time()
                torch.ops.ardiff.uld_step_.default(*args)
                times.append(time.thread_time() - start)
        return min(times)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert least("scalar") > 3 * least(isa)
    finally:
        torch.set_num_threads(threads)


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
