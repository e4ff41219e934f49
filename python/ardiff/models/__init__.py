"""Autoregressive diffusion models: patches, context encoder, diffusion head, checkpoints."""

from .._files.checkpoints import CheckpointError
from .checkpoint import load_model, save_model
from .image_model import ARModel, ModelConfig

__all__ = ["ARModel", "CheckpointError", "ModelConfig", "load_model", "save_model"]
