"""Fused kernels for diffusion and autoregressive-diffusion samplers, as torch custom ops."""

from . import _environment, ops
from .dispatch.backends import backend, chosen_backend, forced_backend
from .ops._shared.address import Purpose, counter_word
from .ops.packed_linear import PackedWeight, pack_linear

__version__ = "0.1.0"  # the only place: packaging, CMake and ardiff.__version__ read it here

_environment.start()

__all__ = [
    "PackedWeight",
    "Purpose",
    "backend",
    "chosen_backend",
    "counter_word",
    "forced_backend",
    "ops",
    "pack_linear",
]
