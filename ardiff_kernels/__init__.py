"""Fused kernels for diffusion and autoregressive-diffusion samplers, as torch custom ops."""

from . import ops
from ._backends import backend, chosen_backend, forced_backend, initialise

__version__ = "0.1.0"

initialise()

__all__ = ["backend", "chosen_backend", "forced_backend", "ops"]
