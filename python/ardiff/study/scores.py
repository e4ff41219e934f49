"""Models of a mixture whose score is wrong by a known amount: perturbed by a smooth field, or
learned by a small network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..data.mixture import GaussianMixture

Model = Callable[[Tensor, Tensor, Any], Tensor]  # on the path edm: a data prediction

FEATURES = 64
SIZE = 0.1  # of the perturbation: the error of the network F of Karras et al. 2022
WIDTH, BATCH, RATE = 64, 1024, 5e-3
MEAN, SPREAD = -1.2, 1.2  # of the log levels trained on, as in Karras et al. 2022
LEAST = 0.002


def preconditioning(level: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """c_skip, c_out and c_in of Karras et al. 2022 for data of standard deviation `scale`,
    `[B, 1]`: a model D = c_skip x + c_out F(c_in x, level) has F of unit size."""
    total = (level**2 + scale**2)[:, None]
    return scale**2 / total, level[:, None] * scale * total.rsqrt(), total.rsqrt()


def scale_of(mixture: GaussianMixture) -> float:
    """The root mean square of an element of the data."""
    return float((mixture.variance() + mixture.mean() ** 2).mean().sqrt())


def perturbed(mixture: GaussianMixture, seed: int, size: float = SIZE) -> Model:
    """The exact model with `size` times a smooth random field of unit size added to F.

    The field is the same function whatever the solver: the error of a network that is trained and
    then sampled, not noise. It is a sum of `FEATURES` cosines of c_in x and log level (Rahimi &
    Recht 2007), whose wavelengths are those of the data's modes, a few for each unit of c_in x.
    """
    exact, scale = mixture.model("edm", "sample"), scale_of(mixture)
    d = mixture.means.shape[1]
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    waves, in_time = 2 * normal(d, FEATURES) / math.sqrt(d), normal(FEATURES)
    phase = 2 * math.pi * torch.rand(FEATURES, generator=generator)
    weights = normal(FEATURES, d) * math.sqrt(2 / FEATURES)

    def model(x: Tensor, level: Tensor, condition: Any = None) -> Tensor:
        _, c_out, c_in = preconditioning(level, scale)
        field = torch.cos(c_in * x @ waves + level.log()[:, None] * in_time + phase) @ weights
        return exact(x, level) + size * c_out * field

    return model


class Network(nn.Module):
    """F of a small denoiser: three hidden layers, the level by a cosine and a sine of its log."""

    def __init__(self, d: int) -> None:
        super().__init__()
        sizes = (d + 8, WIDTH, WIDTH, WIDTH)
        hidden = [
            layer
            for a, b in zip(sizes[:-1], sizes[1:], strict=True)
            for layer in (nn.Linear(a, b), nn.SiLU())
        ]
        self.layers = nn.Sequential(*hidden, nn.Linear(WIDTH, d))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        angle = (level.log() / 4)[:, None] * torch.tensor([0.5, 1.0, 2.0, 4.0])
        return self.layers(torch.cat([x, angle.cos(), angle.sin()], 1))


def learned(mixture: GaussianMixture, seed: int, steps: int) -> Model:
    """A denoiser trained on fresh draws of the mixture for `steps` batches of 1,024 by Adam, its
    rate falling to 0 by a cosine. Log levels are N(-1.2, 1.2^2), at least that of .002."""
    scale, d = scale_of(mixture), mixture.means.shape[1]
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Network(d)
    adam = torch.optim.Adam(network.parameters(), lr=RATE)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)

    def predict(x: Tensor, level: Tensor) -> Tensor:
        c_skip, c_out, c_in = preconditioning(level, scale)
        return c_skip * x + c_out * network(c_in * x, level)

    for _ in range(steps):
        data = mixture.sample(BATCH, generator).float()
        level = (MEAN + SPREAD * torch.randn(BATCH, generator=generator)).exp().clamp(min=LEAST)
        noisy = data + level[:, None] * torch.randn(BATCH, d, generator=generator)
        c_out = preconditioning(level, scale)[1]
        loss = ((predict(noisy, level) - data) / c_out).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        rate.step()
    network.requires_grad_(False)

    def model(x: Tensor, level: Tensor, condition: Any = None) -> Tensor:
        return predict(x, level.clamp(min=LEAST))

    return model
