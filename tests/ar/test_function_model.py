"""ARSampler on functions of the caller's: the example's numbers, what is called, errors."""

from __future__ import annotations

import dataclasses
import re
import runpy

import pytest
import torch

import ardiff
from ardiff.heads import fused as fused_module
from tests import ROOT
from tests._support.small_models import SMALL, small_model

EXAMPLE = ROOT / "examples" / "own_model.py"
OWN = {"patches": 3, "patch_dim": 2, "path": "ou", "prediction": "score"}
FAST = {"solver": "ddpm", "steps": 6}


def score(x, level, context):
    alpha = torch.exp(-level)[:, None]
    return (alpha * context.mean(1, keepdim=True) - x) / (alpha**2 / 4 + 1 - alpha**2)


def encode(patches):
    return patches.sum(1) / 2


def test_the_example_draws_from_the_law_it_names(capsys):
    """Variance 1 and correlation 0.9 of 24,000 neighbours each in 8 coordinates. Control: an
    encoder that forgets the patches gives no correlation, so the bound tells the two apart."""
    example = runpy.run_path(str(EXAMPLE))
    example["main"]()
    first, second = capsys.readouterr().out.strip().splitlines()[-2:]
    variance, correlation = map(float, re.findall(r"\d\.\d{3}", first))
    assert first.startswith("[2000, 12, 8]:")
    assert abs(variance - 1) < 0.1 and abs(correlation - 0.9) < 0.02
    mean, variance = map(float, re.findall(r"\d\.\d{3}", second))
    assert abs(mean - 3) < 0.03 and abs(variance - 0.19) < 0.02

    def forgetful(patches):
        return example["encode"](patches[:, :0])

    own = {"patches": 12, "patch_dim": 8, "path": "ou", "prediction": "score"}
    sampler = ardiff.ARSampler(encode=forgetful, denoise=example["denoise"], **own, **FAST)
    drawn = sampler.sample(200, seed=0).images
    assert abs(float((drawn[:, :-1] * drawn[:, 1:]).mean())) < 0.1


def test_the_parts_of_a_model_draw_what_the_model_draws():
    """To the bit: encoder with a cache, head, guidance and decoding given as a caller would."""
    model = small_model(dataclasses.replace(SMALL, null_context=True))

    class Clipping:
        def new_cache(self, batch):
            return model.context.new_cache(batch, SMALL.patches)

        def step(self, patch, cache):
            tokens = model.start.expand(cache.plan.rows, 1, -1)
            if patch is not None:
                clipped = model.clip_patch(patch, cache.lengths[0] - 1)
                tokens = model.context.embed(clipped[:, None])
            return model.context.append(tokens, cache)[:, 0]

    def decode(patches):
        pixels = [
            model.finished(model.clip_patch(patch, k), k)
            for k, patch in enumerate(patches.unbind(1))
        ]
        return model.assemble(pixels)

    config = model.config
    options = {
        **FAST,
        "guidance": 1.5,
        "guidance_schedule": "linear",
        "temperature": 0.9,
        "batch": 3,
    }
    own = ardiff.ARSampler(
        encode=Clipping(), denoise=model.denoiser, patches=config.patches,
        patch_dim=config.patch_dim, path=config.path, prediction=config.prediction,
        null=model.null, decode=decode, **options,
    )  # fmt: skip
    wanted = ardiff.ARSampler(model, **options)
    assert own.calls == wanted.calls
    assert torch.equal(own.sample(5, seed=2).images, wanted.sample(5, seed=2).images)
    assert own.sample(0, seed=0).images.shape == wanted.sample(0, seed=0).images.shape


def test_encode_gets_the_patches_made_so_far():
    seen = []

    def watched(patches):
        seen.append(patches.clone())
        return encode(patches)

    sampler = ardiff.ARSampler(encode=watched, denoise=score, **OWN, **FAST, batch=4)
    out = sampler.sample(6, seed=1)
    assert out.images.shape == (6, 3, 2) and out.stats.calls == 3 * sampler.table.calls
    assert [tuple(p.shape) for p in seen] == [(4, k, 2) for k in range(3)] + [
        (2, k, 2) for k in range(3)
    ]
    for k in range(3):
        assert torch.equal(torch.cat([seen[k], seen[3 + k]]), out.images[:, :k])
    alone = sampler.sample(1, seed=1, sample_ids=[5]).images
    assert torch.equal(alone[0], out.images[5])
    streamed = list(sampler.stream(6, seed=1))
    assert torch.equal(streamed[1].pixels, out.images[:4, 1])


def test_functions_that_answer_in_one_buffer():
    """As captured CUDA graphs, TensorRT engines and ONNX bindings do: the images of functions that
    answer in new memory, in three batches and with guidance."""

    def captured(function):
        buffers = {}

        def call(*inputs):
            out = function(*inputs)
            return buffers.setdefault(out.shape, torch.empty_like(out)).copy_(out)

        return call

    def decode(patches):
        return 2 * patches + 1

    def draw(wrap):
        sampler = ardiff.ARSampler(
            encode=wrap(encode), denoise=score, decode=wrap(decode), null=torch.ones(2),
            guidance=2.0, batch=2, **OWN, **FAST,
        )  # fmt: skip
        return sampler.sample(5, seed=3).images

    assert torch.equal(draw(captured), draw(lambda function: function))


def test_guidance_compares_with_the_null_context():
    """With w = 0 only the null context counts."""
    null = torch.tensor([3.0, -1.0])
    guided = ardiff.ARSampler(encode=encode, denoise=score, null=null, guidance=0.0, **OWN, **FAST)
    fixed = ardiff.ARSampler(
        encode=lambda patches: null.expand(len(patches), 2), denoise=score, **OWN, **FAST
    )
    assert (guided.sample(4, seed=0).images - fixed.sample(4, seed=0).images).abs().max() < 1e-6


def conditioned(patches, condition):
    """The context that patches of the law N(condition, 1/4) need, whatever was made before."""
    return condition


def test_each_sample_has_the_condition_of_its_own_row():
    """Means -3 and 3 by row, in two batches: to six standard errors of 2,000 values (.07), and .08
    for the start, which is N(0, 1) and not N(3 / 40, 1). A fixed seed. Rows swapped are 6 off."""

    def exact(x, level, context):
        alpha = torch.exp(-level)[:, None]
        return (alpha * context - x) / (alpha**2 / 4 + 1 - alpha**2)

    sampler = ardiff.ARSampler(
        encode=conditioned, denoise=exact, **OWN, solver="dpmpp-2m", steps=12, batch=1500
    )
    label = torch.tensor([-3.0, 3.0]).repeat_interleave(1000)[:, None].expand(2000, 2)
    images = sampler.sample(2000, seed=5, condition=label).images
    error = (images - label[:, None]).unflatten(0, (2, 1000)).mean((1, 3))
    assert error.abs().max() < 0.15
    parts = list(sampler.stream(2000, seed=5, condition=label))
    assert torch.equal(parts[-1].pixels, images[1500:, 2])


class Remembering:
    """An encoder with a cache of its own: the sum of the patches so far and of the condition."""

    def new_cache(self, batch):
        return [torch.zeros(batch, 2)]

    def step(self, patch, cache, condition):
        if patch is not None:
            cache[0] = cache[0] + patch
        return (cache[0] + condition) / 2


def test_a_cached_encoder_gets_the_condition_too():
    """To the bit what the function of all patches draws."""
    label = torch.linspace(-1, 1, 6)[:, None].expand(6, 2)

    def whole(patches, condition):
        made = [torch.zeros(len(patches), 2)]
        for patch in patches.unbind(1):
            made[0] = made[0] + patch
        return (made[0] + condition) / 2

    found, wanted = (
        ardiff.ARSampler(encode=one, denoise=score, **OWN, **FAST).sample(
            6, seed=2, condition=label
        )
        for one in (Remembering(), whole)
    )
    assert torch.equal(found.images, wanted.images)


@pytest.mark.parametrize("known", [1, 2])
def test_a_prefix_is_kept_and_the_rest_is_drawn_as_ever(known):
    """The first patches of a run, given back as the prefix, give its other patches to the bit."""
    sampler = ardiff.ARSampler(encode=encode, denoise=score, **OWN, **FAST, batch=4)
    whole = sampler.sample(6, seed=1).images
    found = sampler.sample(6, seed=1, prefix=whole[:, :known])
    assert torch.equal(found.images, whole)
    assert found.stats.calls == (3 - known) * sampler.table.calls
    other = sampler.sample(6, seed=1, prefix=whole[:, :known] + 5).images
    assert torch.equal(other[:, :known], whole[:, :known] + 5)
    assert ((other - whole)[:, known:].mean() > 1).all()


def test_a_prefix_of_pixels():
    """An image's first patches of the stream, given to a model of pixels, are its first patches."""
    sampler = ardiff.ARSampler(small_model(), "ddpm", steps=6, batch=3)
    parts = list(sampler.stream(3, seed=4))
    found = sampler.sample(3, seed=4, prefix=torch.stack([p.pixels for p in parts[:2]], 1))
    assert (found.images - sampler.sample(3, seed=4).images).abs().max() < 1e-4
    dark = sampler.sample(3, seed=4, prefix=torch.full((3, 2, 3, 4, 4), -0.5)).images
    assert (dark[:, :, :4] + 0.5).abs().max() < 1e-6


INPUTS = {
    "condition must be a tensor of 2 rows, got [3, 2]": {"condition": torch.zeros(3, 2)},
    "condition must be a tensor of 2 rows, got 7": {"condition": 7},
    "encode is called as encode(patches, condition)": {"condition": torch.zeros(2, 2)},
    "prefix must be [2, m, 2] with m up to 2, got [2, 3, 2]": {"prefix": torch.zeros(2, 3, 2)},
    "prefix must be [2, m, 2] with m up to 2, got [2, 1]": {"prefix": torch.zeros(2, 1)},
    "prefix must be a tensor [2, m, 2] with m up to 2, got list": {"prefix": [[0.0, 0.0]]},
    "prefix must be finite, got NaN or inf": {"prefix": torch.full((2, 1, 2), torch.nan)},
}


@pytest.mark.parametrize("message", INPUTS)
def test_conditions_and_prefixes_that_do_not_fit_are_refused_before_any_call(message):
    called = []

    def watched(patches):
        called.append(patches)
        return encode(patches)

    sampler = ardiff.ARSampler(encode=watched, denoise=score, **OWN, **FAST)
    with pytest.raises((TypeError, ValueError)) as raised:
        sampler.sample(2, seed=0, **INPUTS[message])
    assert message in str(raised.value) and not called


def test_what_a_condition_needs_is_said():
    sampler = ardiff.ARSampler(encode=conditioned, denoise=score, **OWN, **FAST)
    with pytest.raises(TypeError, match=r"encode is called as encode\(patches\), which"):
        sampler.sample(2, seed=0)
    with pytest.raises(TypeError, match="an ARModel has none; own functions take one"):
        ardiff.ARSampler(small_model(), "ddpm", 4).sample(2, seed=0, condition=torch.zeros(2))


def test_functions_run_without_a_word_about_heads(caplog):
    fused_module._tell.cache_clear()
    ardiff.ARSampler(encode=encode, denoise=score, **OWN, **FAST).sample(1, seed=0)
    assert caplog.text == ""


ERRORS = {
    "denoise is called as denoise(x, level, context)": {
        **OWN, "encode": encode, "denoise": lambda x, level: x,
    },
    "with the signature (input: torch.Tensor) -> torch.Tensor, does not take: too many": {
        **OWN, "encode": encode, "denoise": torch.nn.Tanh(),
    },
    "weights='int8' packs a head of ardiff.heads, but denoise is a function": {
        **OWN, "encode": encode, "denoise": score, "weights": "int8",
    },
    "pass a model, or both encode and denoise": {"encode": encode},
    "encode and denoise need patches, path too": {
        "encode": encode, "denoise": score, "patch_dim": 2, "prediction": "score",
    },
    "patches must be an integer of 1 or more, got 0": {
        **OWN, "encode": encode, "denoise": score, "patches": 0,
    },
    "unknown path 'xy'": {**OWN, "encode": encode, "denoise": score, "path": "xy"},
    "unknown prediction 'eps'": {**OWN, "encode": encode, "denoise": score, "prediction": "eps"},
    "encode must be callable or have new_cache and step, got int": {
        **OWN, "encode": 1, "denoise": score,
    },
    "denoise must be callable or have hoist, got str": {**OWN, "encode": encode, "denoise": "x"},
    "decode must be callable, got int": {**OWN, "encode": encode, "denoise": score, "decode": 3},
    "guidance needs a model with a null context": {
        **OWN, "encode": encode, "denoise": score, "guidance": 2.0,
    },
    "does not take the option 'patches'": {"model": small_model(), "patches": 3},
}  # fmt: skip


@pytest.mark.parametrize("message", ERRORS)
def test_errors_say_what_is_missing(message):
    with pytest.raises((TypeError, ValueError)) as raised:
        ardiff.ARSampler(**ERRORS[message])
    assert message in str(raised.value)
