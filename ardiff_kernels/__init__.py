"""Fused kernels for diffusion and autoregressive-diffusion samplers, as torch custom ops."""

from . import ops
from .dispatch.backends import backend, chosen_backend, forced_backend, initialise
from .ops._shared.address import Purpose, counter_word

__version__ = "0.1.0"

initialise()

__all__ = ["Purpose", "backend", "chosen_backend", "counter_word", "forced_backend", "ops"]
