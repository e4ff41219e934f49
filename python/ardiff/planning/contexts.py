"""Contexts at which a model of images is looked at: those of images that it draws."""

from __future__ import annotations

from typing import Any

import torch

from ..ar.sampler import ARSampler
from ..models.image_model import ARModel

STEPS = 16  # model calls per patch of the images drawn


def contexts_of(
    model: ARModel, samples: int, guidance: float | None = None, seed: int = 0
) -> torch.Tensor:
    """Contexts of the patches of images that the model draws, image after image, float32
    `[samples, context_width]`.

    Raises:
        ValueError: guidance of a model that was trained without.
    """
    sampler = ARSampler(model, steps=STEPS, guidance=guidance)
    images = sampler.sample(-(-samples // model.config.patches), seed=seed).images
    with torch.no_grad():
        return model.context.encode(model.to_patches(images)).flatten(0, 1)[:samples]


def patch_model(
    model: ARModel, samples: int, guidance: float | None = None, seed: int = 0
) -> dict[str, Any]:
    """What :func:`ardiff.calibrate` asks for of a model of patches: its denoiser, what that takes
    and returns, its grid, and contexts as conditions."""
    contexts = contexts_of(model, samples, guidance, seed)
    found = {
        "model_fn": model.denoiser, "dim": model.patch_dim, "path": model.path,
        "prediction": model.prediction, "condition": contexts, "device": contexts.device,
        **model.grid,
    }  # fmt: skip
    if guidance is not None:
        found |= {"guidance": guidance, "uncond": model.null.expand(samples, -1)}
    return found
