"""ARSampler: steps and guidance that change over the patches, three-way guidance, statistics."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ardiff import ARSampler
from ardiff.guide import guidance_weights
from tests._support.small_models import SMALL, small_model

PATCHES = SMALL.patches
NULLED = dataclasses.replace(SMALL, null_context=True)


def by_patch(images):
    """Images `[n, 3, 8, 8]` as patches `[n, K, 3, 4, 4]`, raster order."""
    rows = images.unfold(2, 4, 4).unfold(3, 4, 4)
    return rows.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)


def test_steps_for_each_patch():
    """A patch is drawn with its own number of steps, 50 down to 5 in MAR's manner."""
    model, steps = small_model(), [9, 7, 5, 3]
    calls = []
    model.head.input_proj.register_forward_hook(lambda *_: calls.append(1))
    annealed = ARSampler(model, "ddpm", steps=steps)
    drawn = annealed.sample(3, seed=0)
    assert annealed.calls == len(calls) == sum(steps) == drawn.stats.calls
    first = by_patch(drawn.images)[:, 0]
    assert torch.equal(
        first, by_patch(ARSampler(model, "ddpm", steps=9).sample(3, seed=0).images)[:, 0]
    )
    same = ARSampler(model, "ddpm", steps=[4] * PATCHES).sample(3, seed=0).images
    assert torch.equal(same, ARSampler(model, "ddpm", steps=4).sample(3, seed=0).images)
    assert not torch.equal(same, drawn.images)


def test_guidance_weights():
    assert guidance_weights(3.0, "constant", 4) == [3.0] * 4
    assert guidance_weights(3.0, "linear", 4) == pytest.approx([1.5, 2.0, 2.5, 3.0])
    with pytest.raises(ValueError, match="unknown guidance_schedule 'cosine'; known: constant"):
        guidance_weights(3.0, "cosine", 4)


def test_linear_guidance_is_the_weight_of_each_patch():
    model = small_model(NULLED)
    linear = by_patch(
        ARSampler(model, "ddpm", 6, guidance=3.0, guidance_schedule="linear")
        .sample(4, seed=0)
        .images
    )
    weights = guidance_weights(3.0, "linear", PATCHES)
    first = by_patch(ARSampler(model, "ddpm", 6, guidance=weights[0]).sample(4, seed=0).images)
    constant = by_patch(ARSampler(model, "ddpm", 6, guidance=3.0).sample(4, seed=0).images)
    torch.testing.assert_close(linear[:, 0], first[:, 0], rtol=0, atol=1e-5)
    assert (linear[:, 0] - constant[:, 0]).abs().max() > 1e-3
    assert (linear[:, 1] - first[:, 1]).abs().max() > 1e-3


def test_three_way_guidance():
    """u2 + w2 (u - u2) + w (c - u): w2 = 1 leaves u2 out, w2 = 0 puts it in u's place."""
    model = small_model(NULLED)
    other = torch.linspace(-1, 1, SMALL.context_width)

    def draw(**options):
        return ARSampler(model, "ddpm", 6, **options).sample(4, seed=0).images

    two = draw(guidance=2.0)
    ones = draw(guidance=2.0, guidance2=1.0, uncond2=other)
    torch.testing.assert_close(ones, two, rtol=0, atol=1e-4)
    assert (draw(guidance=2.0, guidance2=0.5, uncond2=other) - two).abs().max() > 1e-2
    same = draw(guidance=2.0, guidance2=3.0, uncond2=model.null)
    torch.testing.assert_close(same, two, rtol=0, atol=1e-4)
    sampler = ARSampler(model, "ddpm", 6, guidance=2.0, guidance2=3.0, uncond2=other)
    assert sampler.calls == 3 * 4 * 6 == sampler.sample(1, seed=0).stats.calls


BAD = {
    "steps": (dict(steps=[4, 4]), "steps must be an integer or 4, one per patch, got 2"),
    "schedule": (dict(guidance_schedule="cosine"), "unknown guidance_schedule 'cosine'"),
    "second alone": (dict(guidance2=1.0), "guidance2 and uncond2 go together"),
    "no first": (dict(guidance2=1.0, uncond2=torch.zeros(24)), "only with guidance"),
    "context": (
        dict(guidance=1.0, guidance2=1.0, uncond2=torch.zeros(5)),
        r"uncond2 must be a context of shape \[24\], got \[5\]",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_named(case):
    options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        ARSampler(small_model(NULLED), **{"solver": "ddpm", "steps": 6, **options})
