"""The loop a researcher writes: plain eager PyTorch, the rival of every sampler benchmark.

Nothing in it is slow on purpose and nothing is prepared: the batch is drawn whole, gradients are
off, the grid and its coefficients are made before the loop. But the prefix is encoded anew for each
patch, the whole head runs at each step (time embedding and modulations with it), the noise is
`torch.randn`, and each step is a handful of PyTorch calls.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ardiff.models.image_model import ARModel
from ardiff.tables.paths import data_coefficients, get_path, time_grid


@torch.inference_mode()
def reference_ddpm(model: ARModel, n: int, steps: int, seed: int = 0) -> Tensor:
    """Draws n images by ancestral DDPM steps (Ho et al. 2020) on the grid that `ARSampler` uses.

    Args:
        model: the model, on any device.
        n: images, drawn as one batch.
        steps: model calls for each patch; the last one is the data prediction itself.
        seed: of the generator of `torch.randn`.

    Returns:
        Images `[n, C, H, W]` in [-1, 1].
    """
    config = model.config
    device = model.mean.device
    generator = torch.Generator(device).manual_seed(seed)
    path = get_path(config.path)
    options = config.grid_options()
    grid = time_grid(path, steps, options.pop("grid"), **options)
    alpha, sigma = path.alpha(grid).tolist(), path.sigma(grid).tolist()
    levels = torch.tensor(grid, dtype=torch.float32, device=device)
    init_scale = path.init_scale(grid[0])

    patches = torch.empty(n, 0, config.patch_dim, device=device)
    for k in range(config.patches):
        context = model.context.encode(patches)[:, k]
        x = init_scale * torch.randn(n, config.patch_dim, generator=generator, device=device)
        for i in range(steps):
            output = model.denoiser(x, levels[i].expand(n), context)[:, : config.patch_dim]
            from_x, from_output = data_coefficients(config.prediction, alpha[i], sigma[i])
            x0 = from_x * x + from_output * output
            if i + 1 == steps:
                x = x0
                break
            ratio = alpha[i] / alpha[i + 1]
            step_variance = sigma[i] ** 2 - ratio**2 * sigma[i + 1] ** 2
            mean = alpha[i + 1] * step_variance * x0 + ratio * sigma[i + 1] ** 2 * x
            std = sigma[i + 1] * step_variance**0.5 / sigma[i]
            noise = torch.randn(x.shape, generator=generator, device=device)
            x = mean / sigma[i] ** 2 + std * noise
        patches = torch.cat([patches, model.clip_patch(x, k)[:, None]], 1)
    return model.to_images(patches).clamp(-1, 1)
