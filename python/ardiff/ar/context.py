"""The context encoder of an image model: a `CausalEncoder` over the patches of one image.

Context k is what the head needs to know to draw patch k: a function of patches 0..k-1 alone. The
token at position k is the embedding of patch k-1 (a learned start token at k = 0) plus a learned
position.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .encoder import CausalEncoder, EncoderConfig


class PatchContext(CausalEncoder):
    """Contexts of all patches at once (`encode`, training), or from a cache (`append`, sampling).

    Args:
        patch_dim: elements of a patch, d.
        patches: patches of an image, K.
        width, depth, heads: of the transformer; the contexts have `width` channels.

    Raises:
        ValueError: a width that is no multiple of the heads, or heads of more than 256 channels.
    """

    def __init__(self, patch_dim: int, patches: int, width: int, depth: int, heads: int) -> None:
        if width % heads:
            raise ValueError(
                f"context width must be a multiple of its heads, got {width} and {heads}"
            )
        self.patch_dim = patch_dim
        super().__init__(
            EncoderConfig(
                width,
                depth,
                heads,
                norm="layer",
                norm_eps=1e-5,
                mlp="gelu",
                position="learned",
                positions=patches,
                qkv_bias=True,
                proj_bias=True,
                mlp_bias=True,
            )  # fmt: skip
        )

    def _add_inputs(self) -> None:
        width, patches = self.config.width, self.config.positions
        self.start = nn.init.normal_(nn.Parameter(torch.empty(width)), std=0.02)
        self.position = nn.init.normal_(nn.Parameter(torch.empty(patches, width)), std=0.3)
        self.embed = nn.Linear(self.patch_dim, width)

    def tokens(self, last: Tensor, fresh: Tensor) -> Tensor:
        """The next tokens `[B, 1, width]`, of the patches made last `[B, 1, d]`.

        `fresh`, bool `[B]`, are images that have made none and get the start token.
        """
        return torch.where(fresh[:, None, None], self.start, self.embed(last.to(self.start)))

    def encode(self, patches: Tensor) -> Tensor:
        """Contexts of a prefix of n patches and of the patch after it.

        Args:
            patches: `[B, n, d]`, 0 <= n <= K.

        Returns:
            `[B, min(n + 1, K), width]`; context k depends on patches before k only.
        """
        known = patches[:, : self.config.positions - 1]
        return self(torch.cat([self.start.expand(len(patches), 1, -1), self.embed(known)], 1))
