"""Images to rows of patches and back."""

from __future__ import annotations

from torch import Tensor


def patchify(images: Tensor, patch: int) -> Tensor:
    """Cuts images `[n, C, H, W]` into patches `[n, (H/p)(W/p), C p p]`, in raster order.

    Raises ValueError when the patch size does not divide height and width.
    """
    n, channels, height, width = images.shape
    if height % patch or width % patch:
        raise ValueError(
            f"patchify: the patch size must divide height and width, got {patch} for "
            f"{height} x {width}"
        )
    rows, columns = height // patch, width // patch
    cut = images.reshape(n, channels, rows, patch, columns, patch)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(n, rows * columns, channels * patch * patch)


def unpatchify(patches: Tensor, patch: int, channels: int = 3) -> Tensor:
    """The inverse of `patchify` for square images: `[n, K, C p p]` -> `[n, C, p sqrt(K), p
    sqrt(K)]`.

    Raises ValueError when K is no square or the last dimension is not C p p.
    """
    n, count, size = patches.shape
    side = round(count**0.5)
    if side * side != count or size != channels * patch * patch:
        raise ValueError(
            f"unpatchify: expected [n, K, {channels * patch * patch}] with K a square number, "
            f"got {list(patches.shape)}"
        )
    cut = patches.reshape(n, side, side, channels, patch, patch)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(n, channels, side * patch, side * patch)
