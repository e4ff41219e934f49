"""A training set from a folder of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def image_folder(folder: str | Path, patch_size: int, least: int = 2) -> np.ndarray:
    """All images of a folder and the folders within it, in the order of their paths.

    Files with other suffixes than those of images, and hidden ones, are passed over. The first
    frame of an animation is taken. Grey images become RGB; a photo's EXIF orientation is applied.

    Args:
        folder: holds square images of one size, which `patch_size` divides.
        patch_size: pixels along a side of a patch.
        least: images that are needed.

    Returns:
        uint8 `[n, 3, S, S]`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: fewer than `least` images, or all the same; an image that cannot be read, is not
            square, of another size than the first, not divisible by the patch, transparent, or of
            more than 8 bits per channel. The message names the file.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from ardiff.data.image_folder import image_folder
        >>> folder = Path(tempfile.mkdtemp())
        >>> for i, colour in enumerate(["red", "blue"]):
        ...     Image.new("RGB", (32, 32), colour).save(folder / f"{i}.png")
        >>> image_folder(folder, 16).shape
        (2, 3, 32, 32)
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"data: no folder {folder}")
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if len(files) < least:
        raise ValueError(
            f"data: {folder} holds {len(files)} images ({', '.join(SUFFIXES)}), at least {least} "
            "are needed: one batch, and no fewer than 2"
        )
    side = _side(files[0], patch_size)
    images = np.empty((len(files), 3, side, side), np.uint8)
    for image, path in zip(images, files, strict=True):
        image[:] = _pixels(path, side, files[0])
    if (images == images[0]).all():
        raise ValueError(f"data: all {len(files)} images of {folder} are the same")
    return images


def _side(path: Path, patch_size: int) -> int:
    width, height = _open(path).size
    if width != height or width % patch_size:
        raise ValueError(
            f"data: {path} has {width} x {height} pixels, expected a square image whose side the "
            f"patch size {patch_size} divides: crop it, or give another patch size"
        )
    return width


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"data: {path} is no image that can be read ({error})") from error


def _pixels(path: Path, side: int, first: Path) -> np.ndarray:
    """uint8 `[3, side, side]`."""
    with _open(path) as image:
        if image.size != (side, side):
            raise ValueError(
                f"data: {path} has {image.width} x {image.height} pixels, {first} has "
                f"{side} x {side}: all images must have one size"
            )
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"data: {path} has mode {image.mode}, expected 8 bits per channel")
        try:
            image.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"data: {path} is no image that can be read ({error})") from error
        if image.has_transparency_data:
            if image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
                raise ValueError(f"data: {path} is transparent in places: put it on a background")
        upright = ImageOps.exif_transpose(image).convert("RGB")
    return np.asarray(upright).transpose(2, 0, 1)
