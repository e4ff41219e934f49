"""Images of a folder: their exact pixels, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ardiff.data.image_folder import image_folder


def picture(side=8, seed=0, channels=3) -> Image.Image:
    shape = (side, side, channels) if channels > 1 else (side, side)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def test_pixels_in_the_order_of_paths(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    colour, grey = picture(seed=1), picture(seed=2, channels=1)
    opaque, photo = picture(seed=3), picture(seed=4)
    colour.save(tmp_path / "b" / "1.PNG")
    grey.save(tmp_path / "a.bmp")
    opaque.convert("RGBA").save(tmp_path / "c.webp", lossless=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    photo.save(tmp_path / "d.png", exif=exif)
    expected = [np.repeat(np.asarray(grey)[..., None], 3, 2), colour, opaque]
    expected.append(np.rot90(np.asarray(photo), -1))
    got = image_folder(tmp_path, 4)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, np.stack(expected).transpose(0, 3, 1, 2))


def cut_short(folder):
    whole = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(whole[: len(whole) // 2])


def deep(folder):
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(folder / "1.png")


def only_same(folder):
    for i in range(3):
        Image.new("RGB", (8, 8), "red").save(folder / f"{i}.png")


BAD = {
    "junk": (lambda f: (f / "1.png").write_text("junk"), "1.png is no image that can be read"),
    "cut short": (cut_short, "1.png is no image that can be read"),
    "another size": (
        lambda f: picture(16).save(f / "1.png"),
        r"1.png has 16 x 16 pixels, .*0.png has 8 x 8: all images must have one size",
    ),
    "not square": (
        lambda f: picture(8).resize((8, 12)).save(f / "0.png"),
        "0.png has 8 x 12 pixels, expected a square image whose side the patch size 4 divides",
    ),
    "not divisible": (
        lambda f: picture(10).save(f / "0.png"),
        "0.png has 10 x 10 pixels, expected a square image whose side the patch size 4 divides",
    ),
    "transparent": (
        lambda f: picture(8, channels=4).save(f / "1.png"),
        "1.png is transparent in places: put it on a background",
    ),
    "16 bits": (deep, "1.png has mode I;16, expected 8 bits per channel"),
    "too few": (lambda f: (f / "1.png").unlink(), r"holds 2 images \(.bmp, .*at least 3 are"),
    "all the same": (only_same, "all 3 images of .* are the same"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_images_are_named(tmp_path, case):
    for i in range(3):
        picture(seed=i).save(tmp_path / f"{i}.png")
    breaking, message = BAD[case]
    breaking(tmp_path)
    with pytest.raises(ValueError, match=message):
        image_folder(tmp_path, 4, least=3)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="data: no folder .*nowhere"):
        image_folder(tmp_path / "nowhere", 4)
