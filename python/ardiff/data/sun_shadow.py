"""Sun/Shadow: images whose parts obey similar triangles.

A red pole stands on a ground line, a yellow sun is somewhere above it, and the pole's black shadow
lies below the line on the side away from the sun. The shadow's length l1, the pole's height h1, the
sun's horizontal distance l2 and its height over the pole h2 satisfy l1 h2 = l2 h1: a model that
draws the parts one after another has to measure what it has drawn already.

Lengths are in pixels of a 32 x 32 image, x from the left edge, heights from the ground line
upwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SIZE = 32
GROUND = 0.9 * SIZE
SUN_RADIUS = 0.1 * SIZE
POLE_WIDTH = 0.12 * SIZE
SHADOW_HEIGHT = 0.08 * SIZE
CENTRE = SIZE / 2
MAX_SHADOW = 15.0
VARIANTS = ("paper", "free")

_SUN_X = {
    "paper": np.array([(0.0, 6.0), (10.0, 16.0), (16.0, 22.0), (26.0, 32.0)]),
    "free": np.array([(3.2, 12.8), (19.2, 28.8)]),
}
_SUPERSAMPLING = 16
_CHUNK = 512


@dataclass(frozen=True)
class SunShadowParams:
    """What was drawn, each field a float64 array `[n]` in pixels.

    pole: height h of the pole. sun_height: height H of the sun's centre above the ground line.
    sun_x: its distance from the left edge. shadow: length of the shadow.
    """

    pole: np.ndarray
    sun_height: np.ndarray
    sun_x: np.ndarray
    shadow: np.ndarray

    def __len__(self) -> int:
        return len(self.pole)

    def __getitem__(self, index) -> SunShadowParams:
        return SunShadowParams(
            self.pole[index], self.sun_height[index], self.sun_x[index], self.shadow[index]
        )

    @property
    def distance(self) -> np.ndarray:
        """|dx|, the sun's horizontal distance from the pole."""
        return np.abs(self.sun_x - CENTRE)


def _draw(n: int, variant: str, rng: np.random.Generator) -> SunShadowParams:
    pole = rng.uniform(0.2, 0.4, n) * SIZE
    rise = rng.uniform(0.15, 0.4, n) * SIZE
    sun_height = 2 * pole if variant == "paper" else pole + rise
    low, high = _SUN_X[variant][rng.integers(0, len(_SUN_X[variant]), n)].T
    sun_x = rng.uniform(low, high)
    shadow = pole * np.abs(sun_x - CENTRE) / (sun_height - pole)
    return SunShadowParams(pole, sun_height, sun_x, shadow)


def _is_drawable(params: SunShadowParams, variant: str) -> np.ndarray:
    if variant == "paper":
        return np.ones(len(params), bool)
    return (params.sun_height <= 0.8 * SIZE) & (params.shadow <= MAX_SHADOW)


def sample_params(n: int, variant: str, seed: int) -> SunShadowParams:
    """Draws n scenes. Every image of `free` that breaks a bound (H <= 0.8 S, shadow <= 15 px) is
    redrawn whole. The seed is any int64.

    Raises ValueError for a negative n or an unknown variant.
    """
    if variant not in VARIANTS:
        raise ValueError(
            f"sun_shadow: variant must be one of {', '.join(VARIANTS)}, got {variant!r}"
        )
    if n < 0:
        raise ValueError(f"sun_shadow: n must not be negative, got {n}")
    rng = np.random.default_rng(seed % 2**64)  # NumPy takes no negative seeds
    parts, missing = [], n
    while missing > 0:
        drawn = _draw(missing, variant, rng)
        parts.append(drawn[_is_drawable(drawn, variant)])
        missing -= len(parts[-1])
    if not parts:
        return _draw(0, variant, rng)
    return SunShadowParams(
        *(
            np.concatenate([getattr(p, name) for p in parts])
            for name in ("pole", "sun_height", "sun_x", "shadow")
        )
    )


_SUB = (np.arange(SIZE * _SUPERSAMPLING) + 0.5) / _SUPERSAMPLING


def _interval(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Share of each pixel's sub-samples inside [low, high): `[n]`, `[n]` -> `[n, SIZE]`."""
    inside = (_SUB >= low[:, None]) & (_SUB < high[:, None])
    return inside.reshape(len(low), SIZE, _SUPERSAMPLING).mean(2, dtype=np.float32)


def _rectangle(top, bottom, left, right) -> np.ndarray:
    # A supersampled axis-parallel rectangle is the outer product of two supersampled intervals.
    return _interval(top, bottom)[:, :, None] * _interval(left, right)[:, None, :]


def _disc(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Supersampled disc of the sun's radius at (y, x): `[n]`, `[n]` -> `[n, SIZE, SIZE]`."""
    n, span = len(y), int(2 * SUN_RADIUS) + 2
    first_y, first_x = (np.floor(c - SUN_RADIUS).astype(int) for c in (y, x))
    sub = (np.arange(span * _SUPERSAMPLING, dtype=np.float32) + 0.5) / _SUPERSAMPLING
    dy, dx = (sub - (c - first)[:, None] for c, first in ((y, first_y), (x, first_x)))
    inside = (dy**2)[:, :, None] + (dx**2)[:, None, :] <= SUN_RADIUS**2
    window = inside.reshape(n, span, _SUPERSAMPLING, span, _SUPERSAMPLING)
    window = window.mean((2, 4), dtype=np.float32)
    # A margin of one window on each side takes what the border cuts off.
    canvas = np.zeros((n, SIZE + 2 * span, SIZE + 2 * span), np.float32)
    offset = np.arange(span)
    rows = (first_y + span)[:, None, None] + offset[:, None]
    columns = (first_x + span)[:, None, None] + offset[None, :]
    canvas[np.arange(n)[:, None, None], rows, columns] = window
    return canvas[:, span:-span, span:-span]


def _render_chunk(params: SunShadowParams) -> np.ndarray:
    constant = np.full(len(params), 1.0)
    sun = _disc(GROUND - params.sun_height, params.sun_x)
    half = POLE_WIDTH / 2
    pole = _rectangle(
        GROUND - params.pole,
        GROUND * constant,
        (CENTRE - half) * constant,
        (CENTRE + half) * constant,
    )
    to_right = params.sun_x < CENTRE
    shadow = _rectangle(
        GROUND * constant,
        (GROUND + SHADOW_HEIGHT) * constant,
        np.where(to_right, CENTRE, CENTRE - params.shadow),
        np.where(to_right, CENTRE + params.shadow, CENTRE),
    )
    # The shapes never overlap, so their colours subtract from white.
    return 1 - 2 * np.stack([shadow, shadow + pole, shadow + pole + sun], axis=1)


def render(params: SunShadowParams, dtype: type = np.float32) -> np.ndarray:
    """Draws the scenes: 16x supersampled, averaged down to pixels.

    Args:
        params: n scenes; the shadow is drawn with `params.shadow`, whether or not it obeys the
        relation.
        dtype: `numpy.float32` for values in [-1, 1], `numpy.uint8` for 0..255.

    Returns:
        RGB images `[n, 3, 32, 32]`.
    """
    if dtype not in (np.float32, np.uint8):
        raise ValueError(f"render: dtype must be numpy.float32 or numpy.uint8, got {dtype!r}")
    images = np.empty((len(params), 3, SIZE, SIZE), dtype)
    for start in range(0, len(params), _CHUNK):
        part = slice(start, start + _CHUNK)
        drawn = _render_chunk(params[part])
        images[part] = np.rint((drawn + 1) * 127.5) if dtype is np.uint8 else drawn
    return images


def sun_shadow(
    n: int, variant: str = "free", seed: int = 0, dtype: type = np.float32
) -> tuple[np.ndarray, SunShadowParams]:
    """n images of a variant and what is in them; the same seed gives the same images.

    Variants: `paper` has H = 2h and sun positions in four bands, so l1 = l2; `free` draws H on its
    own.

    Returns:
        images `[n, 3, 32, 32]` (see `render` for dtype and range) and their `SunShadowParams`.
    """
    params = sample_params(n, variant, seed)
    return render(params, dtype), params
