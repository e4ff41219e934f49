"""Autoregressive diffusion models: patches, context encoder, diffusion head, checkpoints."""

from ardiff.models.ar_model import ARModel, ModelConfig
from ardiff.models.checkpoint import CheckpointError, load_model, save_model

__all__ = ["ARModel", "CheckpointError", "ModelConfig", "load_model", "save_model"]
