"""k-diffusion's calling convention: a denoiser, sigmas, and `sample_x(model, x, sigmas)`.

The data are N(0, 1/4), whose denoiser is known. A real model is a k-diffusion denoiser
(`k_diffusion.external.CompVisDenoiser(unet)`, say) or what ComfyUI hands to a sampler.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ardiff.integrations.kdiffusion import SAMPLERS


def model(x: Tensor, sigma: Tensor, **extra_args) -> Tensor:
    """The denoised x: the mean of the data given x = data + sigma noise."""
    return x / (1 + 4 * sigma.view(-1, 1, 1, 1) ** 2)


def main() -> None:
    ramp = torch.linspace(14.6 ** (1 / 7), 0.03 ** (1 / 7), 20) ** 7
    sigmas = torch.cat([ramp, torch.zeros(1)])
    x = torch.randn(64, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * sigmas[0]
    for name, sample in SAMPLERS.items():
        calls = []

        def counted(x: Tensor, sigma: Tensor, calls: list = calls) -> Tensor:
            calls.append(float(sigma[0]))
            return model(x, sigma)

        drawn = sample(counted, x, sigmas, disable=True, seed=0)
        print(f"{name}: {len(calls)} calls, deviation {drawn.std():.3f}")


if __name__ == "__main__":
    main()
