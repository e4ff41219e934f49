"""Measures Sun/Shadow images: finds sun, pole and shadow, and tests l1 h2 = l2 h1.

One protocol for every figure in this project, without trimming: an image in which sun, pole or
shadow is not found counts against the detection rate; R^2 is that of the least-squares line of l1
h2 on l2 h1 over *all* the others, outliers included.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np

from .sun_shadow import CENTRE, GROUND, SIZE, SUN_RADIUS, SunShadowParams

FAR = 8.0

_PIXELS = np.arange(SIZE) + 0.5


@dataclass(frozen=True)
class Measured:
    """What was found in n images: `params` (NaN where not), and which parts were, bool `[n]`."""

    params: SunShadowParams
    sun: np.ndarray
    pole: np.ndarray
    shadow_found: np.ndarray
    shadow_side: np.ndarray

    @property
    def detected(self) -> np.ndarray:
        return self.sun & self.pole & self.shadow_found


@dataclass(frozen=True)
class Metrics:
    """Figures of a set of images.

    detection: share of images with all three parts. r2: of the line of l1 h2 on l2 h1. r2_far,
    r2_near: the same for |dx| above and up to 8 px. r2_identity: 1 - residual / variance about l1
    h2 = l2 h1 itself, no line fitted.
    side: share of detected images with the shadow away from the sun. shadow_error: mean |l1 - l2 h1
    / h2| in px.
    """

    n: int
    detection: float
    sun: float
    pole: float
    shadow: float
    r2: float
    r2_far: float
    r2_near: float
    r2_identity: float
    side: float
    shadow_error: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def _cut_disc_table() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For centres on a grid: x of the centroid and area of the disc's part inside the image."""
    centres = np.linspace(-1.5, SIZE + 1.5, 2001)
    offset = np.linspace(-SUN_RADIUS, SUN_RADIUS, 801)
    chord = 2 * np.sqrt(SUN_RADIUS**2 - np.minimum(offset**2, SUN_RADIUS**2))
    x = centres[:, None] + offset
    mass = np.where((x > 0) & (x < SIZE), chord, 0.0)
    area = mass.sum(1) * (offset[1] - offset[0])
    return centres, (mass * x).sum(1) / mass.sum(1), area


_CENTRES, _CENTROIDS, _AREAS = _cut_disc_table()


def _longest_run(profile: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Length and ends, in sub-pixels, of the longest run above a half in each profile `[n, SIZE]`.

    The two pixels that end a run count with their partial coverage.
    """
    n = len(profile)
    rows = np.arange(n)
    run = np.zeros(n, int)
    longest, stop = np.zeros(n, int), np.zeros(n, int)
    for j in range(SIZE):
        run = np.where(profile[:, j] > 0.5, run + 1, 0)
        better = run > longest
        longest, stop = np.where(better, run, longest), np.where(better, j + 1, stop)
    # A part that covers half a pixel at most has no run: take its fullest pixel.
    none = longest == 0
    peak = profile.argmax(1)
    start = np.where(none, peak, stop - longest)
    stop = np.where(none, peak + 1, stop)
    padded = np.pad(np.clip(profile, 0, 1), ((0, 0), (1, 1)))
    before = np.where(none, 0, padded[rows, start])
    after = np.where(none, 0, padded[rows, stop + 1])
    total = np.pad(np.clip(profile, 0, 1).cumsum(1), ((0, 0), (1, 0)))
    length = total[rows, stop] - total[rows, start] + before + after
    return length, start - before, stop + after


def _find_sun(yellow: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mask = np.where(yellow > 0.15, yellow, 0)

    def centroid(m):
        mass = np.maximum(m.sum((1, 2)), 1e-9)
        return (m.sum(2) @ _PIXELS) / mass, (m.sum(1) @ _PIXELS) / mass, mass

    y, x, everything = centroid(mask)
    distance = (_PIXELS[None, :, None] - y[:, None, None]) ** 2
    distance = distance + (_PIXELS[None, None, :] - x[:, None, None]) ** 2
    y, x, near = centroid(np.where(distance <= (1.45 * SUN_RADIUS) ** 2, mask, 0))
    x = np.interp(x, _CENTROIDS, _CENTRES)
    area = np.interp(x, _CENTRES, _AREAS)
    round_blob = (everything > 1) & (near > 0.9 * everything)
    return y, x, round_blob & (near > 0.75 * area) & (near < 1.3 * area)


def measure(images: np.ndarray) -> Measured:
    """Finds the parts of RGB images `[n, 3, 32, 32]` in [-1, 1] (values outside are clipped) to
    sub-pixels.

    Found means: a sun when 90% of the yellow lies in one disc of the right area; a pole when red at
    the centre forms a run of more than 3 px that ends within 1.5 px of the ground line; a shadow
    when black below the line forms a run of at least half a pixel that begins within 1.5 px of the
    pole's axis.
    """
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or images.shape[1:] != (3, SIZE, SIZE):
        raise ValueError(
            f"measure: images must be [n, 3, {SIZE}, {SIZE}], got {list(images.shape)}"
        )
    red, green, blue = np.moveaxis(np.clip((images + 1) / 2, 0, 1), 1, 0)
    sun_y, sun_x, sun = _find_sun(np.clip(green - blue, 0, 1))

    middle = slice(SIZE // 2 - 1, SIZE // 2 + 1)
    height, _, foot = _longest_run(np.clip(red - green, 0, 1)[:, :, middle].mean(2))
    pole = (height > 3) & (np.abs(foot - GROUND) < 1.5)

    band = slice(int(np.ceil(GROUND)), int(np.ceil(GROUND)) + 2)
    length, left, right = _longest_run((1 - red)[:, band].mean(1))
    attached = np.minimum(np.abs(left - CENTRE), np.abs(right - CENTRE)) < 1.5
    shadow = (length >= 0.5) & attached

    params = SunShadowParams(
        pole=np.where(pole, height, np.nan),
        sun_height=np.where(sun, GROUND - sun_y, np.nan),
        sun_x=np.where(sun, sun_x, np.nan),
        shadow=np.where(shadow, length, np.nan),
    )
    side = np.where((left + right) / 2 > CENTRE, 1, -1)
    return Measured(params, sun, pole, shadow, side)


def _r2(y: np.ndarray, x: np.ndarray) -> float:
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1] ** 2)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def metrics(images: np.ndarray) -> Metrics:
    """Figures of images `[n, 3, 32, 32]` in [-1, 1]; NaN where too few parts are found."""
    found = measure(images)
    ok = found.detected
    p = found.params[ok]
    h1, h2, l1, l2 = p.pole, p.sun_height - p.pole, p.shadow, p.distance
    y, x = l1 * h2, l2 * h1
    far = l2 > FAR
    away = np.where(p.sun_x < CENTRE, 1, -1) == found.shadow_side[ok]
    identity = 1 - ((y - x) ** 2).sum() / ((y - y.mean()) ** 2).sum() if len(y) > 2 else np.nan
    return Metrics(
        n=len(images),
        detection=_mean(ok),
        sun=_mean(found.sun),
        pole=_mean(found.pole),
        shadow=_mean(found.shadow_found),
        r2=_r2(y, x),
        r2_far=_r2(y[far], x[far]),
        r2_near=_r2(y[~far], x[~far]),
        r2_identity=float(identity),
        side=_mean(away),
        shadow_error=_mean(np.abs(l1 - l2 * h1 / np.where(np.abs(h2) > 1e-3, h2, np.nan))),
    )


# Below these a loss counts as none: of shares about what 1,000 images tell, of the rest far less.
_LEAST = {"detection": 2e-3, "r2": 1e-4, "r2_far": 1e-4, "r2_near": 1e-4, "side": 2e-3}


def shortfall(found: Metrics) -> float:
    """What the figures lack, as one number: the mean of the logs of 1 - figure, and of the shadow
    error in px; less is better, infinite where a figure is not known."""
    losses = [1 - getattr(found, name) + least for name, least in _LEAST.items()]
    losses.append(found.shadow_error + 0.01)
    return float(np.mean(np.log(losses))) if np.all(np.isfinite(losses)) else np.inf


def shuffled_shadows(params: SunShadowParams, seed: int, within_clusters: bool) -> SunShadowParams:
    """A null: the same scenes with the shadow lengths permuted, over all of them or only within
    |dx| near and far.

    Rendering it gives images of perfect parts whose shadows know nothing (or only near from far) of
    the sun.
    """
    rng = np.random.default_rng(seed % 2**64)  # NumPy takes no negative seeds
    shadow = params.shadow.copy()
    far = params.distance > FAR
    groups = (far, ~far) if within_clusters else (np.ones(len(params), bool),)
    for group in groups:
        (index,) = np.nonzero(group)
        shadow[index] = shadow[rng.permutation(index)]
    return replace(params, shadow=shadow)
