"""A model small enough for any test, with weights that make every part of it matter."""

from __future__ import annotations

import torch

from ardiff.models.image_model import ARModel, ModelConfig

SMALL = ModelConfig(
    image_size=8,
    patch_size=4,
    context_width=24,
    context_depth=2,
    context_heads=3,
    head_width=20,
    head_depth=2,
)


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights of unit gain instead of the zeros that an untrained head begins with."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.3
        with torch.no_grad():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return module.requires_grad_(False)


def small_model(config: ModelConfig = SMALL) -> ARModel:
    """A random model of `config` in float32, its pixels mostly within [-1, 1]."""
    model = randomise(ARModel(config))
    model.std.fill_(0.3)
    return model
