"""Patchify, the context encoder and its cache, the head and its hoisted form."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ardiff.ar.patch_context import PatchContext
from ardiff.heads.base import sinusoidal_embedding
from ardiff.heads.edm import EDMHead
from ardiff.heads.mar import DiffusionHead
from ardiff.models.image_model import ARModel, ModelConfig
from ardiff.models.patchify import patchify, unpatchify
from benchmarks.reference_encoder import reference_encoder
from tests._support.small_models import SMALL, randomise


def test_patches_are_in_raster_order_and_invert():
    image = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).reshape(2, 3, 8, 8)
    patches = patchify(image, 4)
    assert patches.shape == (2, 4, 48)
    assert torch.equal(patches[1, 1].view(3, 4, 4), image[1, :, :4, 4:])
    assert torch.equal(patches[0, 2].view(3, 4, 4), image[0, :, 4:, :4])
    assert torch.equal(unpatchify(patches, 4), image)


def test_patchify_names_what_does_not_fit():
    with pytest.raises(ValueError, match="divide height and width, got 5 for 8 x 8"):
        patchify(torch.zeros(1, 3, 8, 8), 5)
    with pytest.raises(ValueError, match=r"expected \[n, K, 48\] with K a square number"):
        unpatchify(torch.zeros(1, 3, 48), 4)


@pytest.fixture
def encoder() -> PatchContext:
    return randomise(PatchContext(patch_dim=12, patches=5, width=24, depth=3, heads=4))


def test_context_is_that_of_the_plain_encoder(encoder):
    """Whole and step by step, to the bit where the arithmetic is the same; gradients too."""
    plain, patches = reference_encoder(encoder), torch.randn(7, 5, 12)
    whole, cache = plain.encode(patches), plain.new_cache(7)
    assert torch.equal(encoder.encode(patches), whole)
    for k in range(5):
        context = plain.step(patches[:, k - 1] if k else None, cache)
        torch.testing.assert_close(context, whole[:, k], atol=1e-5, rtol=0)
    for model in (encoder, plain):
        model.requires_grad_(True).encode(patches).square().sum().backward()
    for (name, ours), (other, theirs) in zip(
        encoder.named_parameters(), plain.named_parameters(), strict=True
    ):
        assert name == other and torch.equal(ours.grad, theirs.grad), name


@pytest.mark.parametrize("heads", [1, 2, 4, 12])
def test_context_from_a_cache_equals_encode(heads):
    """Heads of 2 to 24 channels, which the cache fills up to what its kernels take."""
    encoder = randomise(PatchContext(patch_dim=12, patches=5, width=24, depth=3, heads=heads))
    patches = torch.randn(7, 5, 12)
    whole, cache = encoder.encode(patches), encoder.new_cache(7, 5, block_size=2)
    assert whole.shape == (7, 5, 24)
    for k in range(5):
        fresh = torch.full((7,), k == 0)
        tokens = encoder.tokens(patches[:, max(k - 1, 0), None], fresh)
        context = encoder.append(tokens, cache)[:, 0]
        torch.testing.assert_close(context, whole[:, k], atol=1e-5, rtol=0)
        prefix = encoder.encode(patches[:, :k])
        torch.testing.assert_close(prefix, whole[:, : k + 1], atol=1e-5, rtol=0)


def test_context_is_causal(encoder):
    patches = torch.randn(3, 5, 12)
    changed = patches.clone()
    changed[:, 2] += 1
    before, after = encoder.encode(patches), encoder.encode(changed)
    torch.testing.assert_close(after[:, :3], before[:, :3], atol=1e-5, rtol=0)
    assert (after[:, 3] - before[:, 3]).abs().max() > 1e-2
    assert (after[:, 4] - before[:, 4]).abs().max() > 1e-2


def test_context_refuses_what_it_cannot_hold(encoder):
    cache = encoder.new_cache(1, 5)
    encoder.append(torch.zeros(1, 5, 24), cache)
    with pytest.raises(ValueError, match="5 positions, got a sequence of 6 tokens"):
        encoder.append(torch.zeros(1, 1, 24), cache)
    with pytest.raises(ValueError, match="multiple of its heads, got 10 and 3"):
        PatchContext(12, 5, width=10, depth=1, heads=3)
    with pytest.raises(ValueError, match="head_dim must be at most 256, got 264"):
        PatchContext(12, 5, width=264, depth=1, heads=1)


def test_head_has_the_state_dict_of_mar():
    names = set(DiffusionHead(16, 24, 32, 2, out=32).state_dict())
    layers = ["time_embed.mlp.0", "time_embed.mlp.2", "cond_embed", "input_proj"]
    for block in ("res_blocks.0", "res_blocks.1"):
        layers += [f"{block}.{part}" for part in ("in_ln", "mlp.0", "mlp.2", "adaLN_modulation.1")]
    layers += ["final_layer.linear", "final_layer.adaLN_modulation.1"]
    assert names == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


def test_head_is_mar_in_formulas():
    head = randomise(DiffusionHead(6, 5, 16, 1, out=12)).double()
    x, c = torch.randn(4, 6).double(), torch.randn(4, 5).double()
    level = torch.tensor([0.0, 1.5, 400.0, 999.0])
    p = head.state_dict()

    def linear(name, v):
        return v @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def silu(v):
        return v * torch.sigmoid(v)

    def norm(v):
        return (v - v.mean(1, True)) / (v.var(1, keepdim=True, correction=0) + 1e-6).sqrt()

    frequency = 10000 ** (-torch.arange(128) / 128)
    angle = level[:, None] * frequency
    features = torch.cat([angle.cos(), angle.sin()], 1)
    torch.testing.assert_close(sinusoidal_embedding(level), features, atol=2e-4, rtol=0)
    features = sinusoidal_embedding(level).double()
    y = linear("time_embed.mlp.2", silu(linear("time_embed.mlp.0", features)))
    y = silu(y + linear("cond_embed", c))
    h = linear("input_proj", x)
    shift, scale, gate = linear("res_blocks.0.adaLN_modulation.1", y).split(16, 1)
    n = norm(h) * p["res_blocks.0.in_ln.weight"] + p["res_blocks.0.in_ln.bias"]
    n = n * (1 + scale) + shift
    h = h + gate * linear("res_blocks.0.mlp.2", silu(linear("res_blocks.0.mlp.0", n)))
    shift, scale = linear("final_layer.adaLN_modulation.1", y).split(16, 1)
    expected = linear("final_layer.linear", norm(h) * (1 + scale) + shift)
    torch.testing.assert_close(head(x, level, c), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("preconditioning", ["none", "edm"])
def test_hoisted_head_equals_the_plain_one(batch, preconditioning):
    head = randomise(DiffusionHead(12, 24, 32, 3))
    model = EDMHead(head) if preconditioning == "edm" else head
    levels = torch.linspace(80.0, 0.002, 9)
    c = torch.randn(batch, 24)
    step = model.hoist(levels, c)
    for row in (0, 1, 5, 8):
        x = torch.randn(batch, 12)
        torch.testing.assert_close(
            step(row, x), model(x, levels[row].expand(batch), c), atol=1e-5, rtol=1e-5
        )


def test_hoist_in_runs_of_rows_gives_the_same(monkeypatch):
    head = randomise(DiffusionHead(12, 24, 32, 2))
    levels, c, x = torch.linspace(900, 0, 10), torch.randn(4, 24), torch.randn(10, 4, 12)
    whole = head.hoist(levels, c)
    monkeypatch.setattr("ardiff.heads.hoisting._OWN_BUDGET", 3 * 4 * 8 * 32 * 4)
    runs = head.hoist(levels, c)
    for row in (*range(10), 2):
        torch.testing.assert_close(runs(row, x[row]), whole(row, x[row]), atol=1e-6, rtol=1e-6)


def test_edm_preconditioning_is_that_of_karras():
    """With a head of zeros, D = c_skip x; the four coefficients for unit data at sigma = 2."""
    head = DiffusionHead(6, 4, 8, 1)
    x, c, sigma = torch.randn(3, 6), torch.randn(3, 4), torch.full((3,), 2.0)
    torch.testing.assert_close(EDMHead(head)(x, sigma, c), x / 5)
    seen = []

    def spy(x, level, c):
        seen.append((x, level))
        return torch.ones_like(x)

    out = EDMHead(spy)(x, sigma, c)
    torch.testing.assert_close(out, x / 5 + 2 / 5**0.5)
    torch.testing.assert_close(seen[0][0], x / 5**0.5)
    torch.testing.assert_close(seen[0][1], 250 * sigma.log())


def test_model_normalises_by_position_and_inverts():
    model = ARModel(SMALL)
    model.mean.normal_()
    model.std.fill_(0.3)
    images = torch.rand(5, 3, 8, 8) * 2 - 1
    patches = model.to_patches(images)
    assert patches.shape == (5, 4, 48)
    torch.testing.assert_close(model.to_images(patches), images)
    pixels = model.patch_pixels(patches[:, 3], 3)
    torch.testing.assert_close(pixels, images[:, :, 4:, 4:])
    wild = model.patch_pixels(model.clip_patch(patches[:, 2] * 9, 2), 2)
    assert wild.abs().max() <= 1 + 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "moon"}, "path must be one of ou"),
        ({"prediction": "x0"}, "prediction must be one of score"),
        ({"preconditioning": "iddpm"}, "preconditioning must be one of none, edm"),
        ({"preconditioning": "edm"}, "needs path edm and prediction sample"),
        ({"head_width": 0}, "head_width must be positive, got 0"),
        ({"head_width": "wide"}, "head_width must be of type int, got 'wide'"),
        ({"patch_size": 5}, "patch_size must divide image_size, got 5 and 8"),
    ],
)
def test_bad_configs_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


def test_config_round_trip_and_unknown_names():
    assert ModelConfig.from_dict(SMALL.to_dict()) == SMALL
    values = SMALL.to_dict() | {"colour": 1}
    del values["path"]
    with pytest.raises(ValueError, match="unknown colour; missing path"):
        ModelConfig.from_dict(values)
