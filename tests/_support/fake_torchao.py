"""Stands in for torchao, which the tests do not install."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from torch import nn

from ardiff_kernels.ops.packed_linear.packing import quantize_rows
from benchmarks import _rivals


def quantized_by_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives torchao's `quantize_`, which here replaces the weights by what int8 keeps of them."""

    def quantize_(module: nn.Module, config: object) -> None:
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                steps, scale = quantize_rows(layer.weight.float())
                layer.weight.copy_(steps * scale[:, None])

    # Not torchao itself, which transformers would then take for installed.
    found = ModuleType("torchao.quantization")
    found.quantize_, found.Int8WeightOnlyConfig = quantize_, object
    monkeypatch.setitem(sys.modules, "torchao.quantization", found)
    monkeypatch.setattr(_rivals, "has_torchao", lambda: True)
