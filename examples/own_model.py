"""A model of your own, as two functions: `ardiff.sample` and `ARSampler(encode=, denoise=)`.

The data here are sequences of 12 patches of 8 numbers, x_k = 0.9 x_(k-1) + noise of variance
0.19, so that the exact score is known and the answer can be checked: variance 1, correlation 0.9
between neighbours. In place of the two functions put your networks.
"""

from __future__ import annotations

import torch
from torch import Tensor

import ardiff

RHO, PATCHES, SIZE = 0.9, 12, 8


def encode(patches: Tensor) -> Tensor:
    """Context of the next patch `[B, SIZE]` from those made, `[B, k, SIZE]`: here, its mean."""
    return RHO * patches[:, -1] if patches.shape[1] else patches.new_zeros(len(patches), SIZE)


def denoise(x: Tensor, level: Tensor, context: Tensor) -> Tensor:
    """The score of the noised patch at time t = level of the Ornstein-Uhlenbeck path."""
    alpha = torch.exp(-level)[:, None]
    known = (context != 0).any(1, keepdim=True)
    variance = torch.where(known, 1 - RHO**2, 1.0)  # the first patch has variance 1
    return (alpha * context - x) / (alpha**2 * variance + 1 - alpha**2)


def main() -> None:
    sampler = ardiff.ARSampler(
        encode=encode, denoise=denoise, patches=PATCHES, patch_dim=SIZE,
        path="ou", prediction="score", solver="rtk-hybrid", steps=24,
    )  # fmt: skip
    drawn = sampler.sample(2000, seed=0).images
    left, right = drawn[:, :-1], drawn[:, 1:]
    correlation = (left * right).mean() / (left.std() * right.std())
    print(f"{list(drawn.shape)}: variance {drawn.var():.3f}, correlation {correlation:.3f}")

    # A denoiser alone, without patches: one call.
    context = torch.full((2000, SIZE), 3.0)
    x = ardiff.sample(
        denoise, (2000, SIZE), path="ou", prediction="score", solver="dpmpp-2m-sde", steps=40,
        condition=context, seed=0,
    )  # fmt: skip
    print(f"{list(x.shape)}: mean {x.mean():.3f}, variance {x.var():.3f}")


if __name__ == "__main__":
    main()
