"""Sample grids as pictures."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

MARGIN = 2
CAPTION_HEIGHT = 18


def image_grid(
    images: Tensor, *, columns: int = 8, scale: int = 2, caption: str = ""
) -> Image.Image:
    """Images side by side, row after row, with a caption above.

    Args:
        images: `[n, 3, H, W]` in [-1, 1]; values outside are clipped.
        columns: images per row.
        scale: each pixel becomes scale x scale pixels.
        caption: one line of text; empty for none.

    Raises:
        ValueError: images of another shape.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"image_grid: images must be [n, 3, H, W], got {list(images.shape)}")
    pixels = ((images.float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()
    cells = pixels.permute(0, 2, 3, 1).numpy().repeat(scale, 1).repeat(scale, 2)
    height, width = cells.shape[1] + MARGIN, cells.shape[2] + MARGIN
    top = CAPTION_HEIGHT if caption else 0
    rows = math.ceil(len(cells) / columns)
    canvas = np.full((top + rows * height + MARGIN, columns * width + MARGIN, 3), 128, np.uint8)
    canvas[:top] = 255
    for i, cell in enumerate(cells):
        y, x = top + i // columns * height + MARGIN, i % columns * width + MARGIN
        canvas[y : y + cell.shape[0], x : x + cell.shape[1]] = cell
    picture = Image.fromarray(canvas)
    if caption:
        ImageDraw.Draw(picture).text((4, 3), caption, fill=(0, 0, 0))
    return picture


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    """Pictures in one row, aligned at the top, on white."""
    width, height = sum(p.width for p in pictures), max(p.height for p in pictures)
    joined = Image.new("RGB", (width, height), (255, 255, 255))
    x = 0
    for picture in pictures:
        joined.paste(picture, (x, 0))
        x += picture.width
    return joined
