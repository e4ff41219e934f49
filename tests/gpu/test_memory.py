"""Free memory of a GPU: what PyTorch holds without using it can be taken."""

from __future__ import annotations

import torch

from ardiff.ar.free_memory import available_bytes

MIB = 2**20


def test_memory_that_pytorch_caches_is_free():
    before = available_bytes("cuda")
    block = torch.empty(64 * MIB, dtype=torch.uint8, device="cuda")
    assert before - available_bytes("cuda") >= 60 * MIB
    del block
    assert abs(before - available_bytes("cuda")) < 8 * MIB
