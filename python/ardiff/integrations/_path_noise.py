"""A noise sampler over sigmas whose noise is that of a Brownian path."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ardiff_kernels import ops

from ..noise import make_key, make_stream

_LAST = 4294967040.0  # the last time of a path, at sigma 1.5e-5
Transform = Callable[[Tensor], Tensor]


def signed(seed: int | None) -> int | None:
    """ComfyUI's uint64 seeds as the int64 of the same bits."""
    return seed - 2**64 if isinstance(seed, int) and 2**63 <= seed < 2**64 else seed


def of_flow(sigma: Tensor) -> Tensor:
    """The sigma of x0 + sigma eps at that of a rectified flow, (1 - sigma) x0 + sigma eps."""
    return sigma / (1 - sigma)


class PathNoiseSampler:
    """Noise for samplers of k-diffusion, as `BrownianTreeNoiseSampler`, without torchsde.

    ``sampler(sigma, sigma_next)`` gives the normalised increment of a Brownian path between the two
    sigmas: standard normals like x, on any device the same, which depend on (seed, sample, element,
    sigmas) alone. Runs of one seed thus have the noise of one path, whatever their steps.

    The path runs in 1 / sigma^2, in which the noise of the reverse process of x0 + sigma eps is a
    Brownian motion (docs/noise_path.md); below sigma = 1.5e-5 it stands still. The law is that of
    torchsde's noise, the values are others.

    Args:
        x: `[B, ...]`, what the normals are like.
        sigma_min, sigma_max: not needed; taken since a Brownian tree needs its ends.
        seed: int64 or uint64, sample i of the batch has a path of its own; or one for each sample,
            whose path then depends on its own seed alone. None draws one from torch's generator.
        transform: from what the sampler is called with to sigma, as tensors;
            ``lambda sigma: sigma / (1 - sigma)`` for the sigmas of a rectified flow.
        sample_ids: `B` ids that address the paths of one seed, default 0 to B - 1.

    Raises:
        ValueError, TypeError: seeds that are not one integer for each sample, bad ids.

    Example:
        >>> import torch
        >>> from ardiff.integrations.kdiffusion import PathNoiseSampler
        >>> noise = PathNoiseSampler(torch.zeros(2, 4, 8, 8), seed=7)
        >>> noise(torch.tensor(14.6), torch.tensor(9.2)).shape
        torch.Size([2, 4, 8, 8])
    """

    def __init__(
        self,
        x: Tensor,
        sigma_min: float | Tensor | None = None,
        sigma_max: float | Tensor | None = None,
        seed: int | Sequence[int] | None = None,
        transform: Transform = lambda sigma: sigma,
        *,
        sample_ids: Sequence[int] | Tensor | None = None,
    ) -> None:
        self._like, self._transform = x, transform
        if isinstance(seed, (list, tuple)):
            if len(seed) != len(x) or sample_ids is not None:
                raise ValueError(
                    f"seed must be one integer, or {len(x)}, one for each sample and without "
                    f"sample_ids; got {len(seed)}"
                )
            streams = make_stream([0] * len(x), len(x), 0, x.device)
            keys = [make_key(signed(each), x.device) for each in seed]
            self._parts = list(zip(keys, streams.split(1), strict=True))
        else:
            key = make_key(signed(seed), x.device)
            self._parts = [(key, make_stream(sample_ids, len(x), 0, x.device))]

    def _time(self, sigma: float | Tensor) -> Tensor:
        found = self._transform(torch.as_tensor(sigma, device=self._like.device).double())
        return found.pow(-2).clamp(max=_LAST).float().reshape(1)

    def __call__(self, sigma: float | Tensor, sigma_next: float | Tensor) -> Tensor:
        """Normals like x, for the step from `sigma` to `sigma_next`."""
        start, end = self._time(sigma), self._time(sigma_next)
        d = math.prod(self._like.shape[1:])
        parts = [ops.brownian_increment(*address, start, end, d) for address in self._parts]
        found = torch.cat(parts) if parts else self._like.new_zeros(0, d)
        return found.view(self._like.shape).to(self._like.dtype)
