"""The generator, the extractor, and the figures of images that obey the relation or do not."""

from __future__ import annotations

import numpy as np
import pytest

from ardiff.data import sun_shadow_metrics as measurements
from ardiff.data.sun_shadow import (
    CENTRE,
    GROUND,
    MAX_SHADOW,
    SHADOW_HEIGHT,
    SIZE,
    SunShadowParams,
    render,
    sample_params,
    sun_shadow,
)
from ardiff.data.sun_shadow_metrics import measure, metrics, shuffled_shadows

FIELDS = ("pole", "sun_height", "sun_x", "shadow")


def scene(pole=10.0, sun_height=20.0, sun_x=6.0, shadow=10.0) -> SunShadowParams:
    return SunShadowParams(*(np.array([v]) for v in (pole, sun_height, sun_x, shadow)))


@pytest.mark.parametrize("variant", ["paper", "free"])
def test_params_follow_the_definition(variant):
    p = sample_params(20_000, variant, seed=1)
    rise = p.sun_height - p.pole
    np.testing.assert_allclose(p.shadow * rise, p.distance * p.pole, rtol=1e-12)
    assert 0.2 * SIZE <= p.pole.min() and p.pole.max() <= 0.4 * SIZE
    if variant == "paper":
        np.testing.assert_allclose(p.sun_height, 2 * p.pole)
        inside = [(0, 6), (10, 16), (16, 22), (26, 32)]
    else:
        assert 0.15 * SIZE <= rise.min() and rise.max() <= 0.4 * SIZE
        assert p.sun_height.max() <= 0.8 * SIZE and p.shadow.max() <= MAX_SHADOW
        inside = [(3.2, 12.8), (19.2, 28.8)]
    in_band = sum((p.sun_x >= low) & (p.sun_x <= high) for low, high in inside)
    assert np.all(in_band >= 1)


def test_long_shadows_are_redrawn_not_cut():
    p = sample_params(20_000, "free", seed=2)
    # A cap would pile up images at the bound; a redraw leaves a density of a few per cent a pixel.
    assert np.mean(p.shadow > MAX_SHADOW - 0.01) < 0.002
    assert np.mean(p.shadow > MAX_SHADOW - 2) > 0.01


def test_rendered_parts_have_their_exact_areas():
    # Edges on the supersampling grid, so that areas are exact but for the disc's.
    image = (render(scene())[0] + 1) / 2
    red, green, blue = image
    assert np.isclose((1 - red).sum(), 10.0 * SHADOW_HEIGHT, atol=10 / 16)
    assert np.isclose((red - green).sum(), 10.0 * 0.12 * SIZE, atol=10 / 8)
    assert np.isclose((green - blue).sum(), np.pi * 3.2**2, rtol=5e-3)
    assert (1 - red)[:, :16].sum() == 0, "the shadow is on the side away from the sun"
    assert (1 - red)[: int(GROUND)].sum() == 0
    assert np.all(image[:, :5, 20:] == 1), "the background is white"


def test_disc_is_cut_by_the_border():
    cut = render(scene(sun_x=0.0))[0]
    yellow = (cut[1] - cut[2]) / 2
    assert np.isclose(yellow.sum(), np.pi * 3.2**2 / 2, rtol=1e-2)


def test_same_seed_same_images_and_uint8_agrees():
    images, params = sun_shadow(700, "free", seed=5)
    again, _ = sun_shadow(700, "free", seed=5)
    assert images.dtype == np.float32 and np.array_equal(images, again)
    assert not np.array_equal(images, sun_shadow(700, "free", seed=6)[0])
    quantised, _ = sun_shadow(700, "free", seed=5, dtype=np.uint8)
    assert np.abs(quantised / 127.5 - 1 - images).max() <= 1 / 255 + 1e-6
    assert len(params) == 700 and images.shape == (700, 3, 32, 32)


@pytest.mark.parametrize("seed", [-1, -(2**63)])
def test_a_negative_seed_is_that_of_its_64_bits(seed):
    expected = np.random.default_rng(seed + 2**64).uniform(0.2, 0.4, 50) * SIZE
    params = sample_params(50, "paper", seed)
    np.testing.assert_array_equal(params.pole, expected)
    shuffled, same = (shuffled_shadows(params, s, False).shadow for s in (seed, seed + 2**64))
    np.testing.assert_array_equal(shuffled, same)
    assert not np.array_equal(shuffled, params.shadow)


@pytest.mark.parametrize("variant", ["paper", "free"])
def test_extractor_recovers_the_params(variant):
    images, params = sun_shadow(3000, variant, seed=3)
    found = measure(images)
    for name in FIELDS:
        error = np.abs(getattr(found.params, name) - getattr(params, name))[found.detected]
        assert error.max() < 0.11, name
    away = np.where(params.sun_x < CENTRE, 1, -1)
    assert np.array_equal(found.shadow_side[found.detected], away[found.detected])


def test_figures_of_real_images():
    free = metrics(sun_shadow(2000, "free", seed=7)[0])
    assert free.detection == 1 and free.side == 1
    assert free.r2 > 0.999 and free.r2_far > 0.998 and free.r2_identity > 0.999
    paper = metrics(sun_shadow(2000, "paper", seed=7)[0])
    # Shadows shorter than half a pixel, 4% of `paper`, cannot be found.
    assert 0.94 < paper.detection < 0.98 and paper.r2 > 0.999


def test_nulls_do_not_pass():
    """Perfect parts with shuffled shadows: the relation's figures must fall, the parts' must not.

    Under independence r2 of 2000 images exceeds .02 with probability below 1e-9.
    """
    params = sample_params(2000, "free", seed=8)
    shuffled = metrics(render(shuffled_shadows(params, 1, within_clusters=False)))
    assert shuffled.detection == 1 and shuffled.r2 < 0.1 and shuffled.r2_far < 0.1
    clusters = metrics(render(shuffled_shadows(params, 1, within_clusters=True)))
    assert clusters.r2 < 0.5 and clusters.r2_far < 0.2
    paper = sample_params(2000, "paper", seed=8)
    near_far = metrics(render(shuffled_shadows(paper, 1, within_clusters=True)))
    assert 0.7 < near_far.r2 < 0.9, "in `paper` near and far alone explain most of r2"


def test_undetected_images_lower_detection_and_leave_no_value():
    images, _ = sun_shadow(200, "free", seed=9)
    images[:50, 2] = images[:50, 1]
    found = metrics(images)
    assert found.detection == 0.75 and found.sun == 0.75 and found.pole == 1.0
    assert found.r2 > 0.999
    assert np.isnan(metrics(np.ones((5, 3, 32, 32), np.float32)).r2)


def test_no_trimming():
    """One image in a hundred with a wrong shadow must show in r2."""
    params = sample_params(500, "free", seed=10)
    params.shadow[:5] = 15.0 - params.shadow[:5]
    spoiled = metrics(render(params))
    assert spoiled.detection == 1 and spoiled.r2 < 0.995


def test_noise_on_pixels_is_tolerated():
    images, _ = sun_shadow(500, "free", seed=11)
    noisy = images + 0.1 * np.random.default_rng(0).standard_normal(images.shape)
    found = metrics(noisy)
    assert found.detection > 0.95 and found.r2 > 0.99


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="variant must be one of paper, free, got 'moon'"):
        sun_shadow(4, "moon")
    with pytest.raises(ValueError, match="n must not be negative, got -1"):
        sun_shadow(-1)
    with pytest.raises(ValueError, match="dtype must be numpy.float32 or numpy.uint8"):
        sun_shadow(1, dtype=np.float64)
    with pytest.raises(ValueError, match=r"images must be \[n, 3, 32, 32\], got \[2, 32, 32, 3\]"):
        measure(np.zeros((2, 32, 32, 3)))
    assert sun_shadow(0)[0].shape == (0, 3, 32, 32)
    assert measurements.metrics(np.zeros((0, 3, 32, 32))).n == 0
