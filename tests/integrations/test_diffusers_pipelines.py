"""diffusers' own pipelines, unchanged, with each of the schedulers, on random tiny weights."""

from __future__ import annotations

import inspect
import json
import logging
import sys

import diffusers
import pytest
import torch

from ardiff.integrations import diffusers as ours
from tests.integrations._support.diffusers_cases import KARRAS, STEPPED

every = pytest.mark.parametrize("kind", STEPPED, ids=lambda kind: kind.__name__)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def image_pipeline(scheduler) -> diffusers.DDPMPipeline:
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8, 8), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
    )  # fmt: skip
    return diffusers.DDPMPipeline(unet.eval(), scheduler)


def autoencoder() -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(4,), norm_num_groups=2, latent_channels=4, sample_size=8
    ).eval()


def class_pipeline(scheduler) -> diffusers.DiTPipeline:
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=4, num_layers=1, num_attention_heads=2, attention_head_dim=4, in_channels=4,
        out_channels=8, patch_size=2, num_embeds_ada_norm=1000,
    )  # fmt: skip
    return diffusers.DiTPipeline(transformer.eval(), autoencoder(), scheduler)


def text_pipeline(kind, scheduler):
    unet = diffusers.UNet2DConditionModel(
        sample_size=4, in_channels=4, out_channels=4, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8, 8), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
        cross_attention_dim=8,
    )  # fmt: skip
    pipeline = kind(
        vae=autoencoder(), text_encoder=None, tokenizer=None, unet=unet.eval(), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def images(pipeline, **options) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(2)
    found = pipeline(generator=generator, output_type="pt", num_inference_steps=7, **options)
    return torch.as_tensor(found.images)


@every
@pytest.mark.parametrize("make", [image_pipeline, class_pipeline])
def test_runs_and_loads_back(kind, make, tmp_path):
    pipeline = make(kind())
    options = {"batch_size": 2} if make is image_pipeline else {"class_labels": [1, 7]}
    found = images(pipeline, **options)
    assert found.shape == (2, 3, 8, 8) or found.shape == (2, 3, 4, 4)
    assert found.isfinite().all() and found.std() > 0.01
    assert torch.equal(images(pipeline, **options), found)
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["ardiff.integrations.diffusers", kind.__name__]
    loaded = type(pipeline).from_pretrained(tmp_path)
    assert type(loaded.scheduler) is kind
    # a model's own bits change with where its weights lie in memory
    assert (images(loaded, **options) - found).abs().max() < 1e-4


def test_the_import_that_loading_needs(tmp_path, monkeypatch):
    """Without it diffusers says which import is missing; the page names it."""
    image_pipeline(ours.RTKULDScheduler()).save_pretrained(tmp_path)
    monkeypatch.delitem(sys.modules, "ardiff.integrations.diffusers")
    with pytest.raises(Exception, match="ardiff.integrations.diffusers"):
        diffusers.DDPMPipeline.from_pretrained(tmp_path)


@every
def test_a_schedulers_swap(kind):
    """`kind.from_config(pipe.scheduler.config)`, as users exchange schedulers."""
    pipeline = image_pipeline(diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"))
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
    assert pipeline.scheduler.config.beta_schedule == "squaredcos_cap_v2"
    assert images(pipeline).isfinite().all()


def test_same_images_as_diffusers():
    """A deterministic solver needs no shared noise: the pipeline gives the same images."""
    theirs = class_pipeline(diffusers.DPMSolverMultistepScheduler())
    expected = images(theirs, class_labels=[1, 7])
    theirs.scheduler = ours.FusedDPMSolverMultistepScheduler.from_config(theirs.scheduler.config)
    assert (images(theirs, class_labels=[1, 7]) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["DDIM", "EulerDiscrete", "UniPCMultistep"])
def test_same_latents_as_diffusers(name):
    """Of the schedulers whose model is given the sample over its scale, and of img2img."""
    found = []
    for owner, prefix in ((diffusers, ""), (ours, "Fused")):
        kind = getattr(owner, f"{prefix}{name}Scheduler")
        config = {"beta_schedule": "scaled_linear", "timestep_spacing": "leading"}
        for pipe in (diffusers.StableDiffusionPipeline, diffusers.StableDiffusionImg2ImgPipeline):
            torch.manual_seed(0)
            pipeline = text_pipeline(pipe, kind(**config, steps_offset=1))
            embeds = torch.randn(1, 3, 8)
            size = {"height": 8, "width": 8}
            if pipe is diffusers.StableDiffusionImg2ImgPipeline:
                size = {"image": torch.rand(1, 3, 8, 8), "strength": 0.6}
            found.append(
                pipeline(
                    prompt_embeds=embeds, negative_prompt_embeds=embeds, num_inference_steps=7,
                    generator=torch.Generator().manual_seed(1), output_type="latent", **size,
                ).images
            )  # fmt: skip
    for expected, mine in zip(found[:2], found[2:], strict=True):
        assert (mine - expected).abs().max() < 1e-4 * expected.abs().max().clamp(min=1)


@every
def test_callbacks_and_progress_bar(kind, capsys):
    pipeline = text_pipeline(diffusers.StableDiffusionPipeline, kind())
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, int(timestep), tensors["latents"].clone()))
        return tensors

    pipeline.set_progress_bar_config(disable=False)
    torch.manual_seed(0)
    embeds = torch.randn(2, 3, 8)
    generators = [torch.Generator().manual_seed(s) for s in (1, 2)]
    out = pipeline(
        prompt_embeds=embeds, negative_prompt_embeds=embeds, num_inference_steps=7, height=8,
        width=8, generator=generators, output_type="latent", callback_on_step_end=callback,
    ).images  # fmt: skip
    assert [step for step, _, _ in seen] == list(range(7))
    assert [t for _, t, _ in seen] == pipeline.scheduler.timesteps.tolist()
    assert torch.equal(seen[-1][2], out) and out.isfinite().all()
    assert "7/7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "strength"),
    [(kind, strength) for kind in STEPPED for strength in (0.4, 1.0)]
    + [(kind, 0.4) for kind in KARRAS],
)
def test_image_to_image(kind, strength):
    """The pipeline begins within the schedule, for RTK within a stage, by set_begin_index."""
    pipeline = text_pipeline(diffusers.StableDiffusionImg2ImgPipeline, kind())
    embeds = torch.randn(1, 3, 8)
    generator = torch.Generator().manual_seed(3)
    out = pipeline(
        prompt_embeds=embeds, negative_prompt_embeds=embeds, image=torch.rand(1, 3, 8, 8),
        strength=strength, num_inference_steps=10, generator=generator, output_type="pt",
    ).images  # fmt: skip
    assert out.isfinite().all() and pipeline.scheduler.step_index == 10


@every
def test_arguments_that_are_not_of_the_scheduler(kind, caplog, monkeypatch):
    """diffusers' own way: unknown ones are ignored aloud, deprecated ones would be listed."""
    assert ("kwargs" in inspect.signature(kind.__init__).parameters) == bool(
        kind._deprecated_kwargs
    )
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    config = {**kind().config, "predict_epsilon": True, "tensor_format": "pt"}
    with caplog.at_level(logging.WARNING, "diffusers"):
        scheduler, unused = kind.from_config(config, return_unused_kwargs=True)
    assert f"were passed to {kind.__name__}, but are not expected" in caplog.text
    assert "predict_epsilon" in caplog.text and "predict_epsilon" in unused
    assert {**scheduler.config, **kind().config} == dict(scheduler.config)
    with pytest.warns(FutureWarning, match="`beta_schedule` directly .* is deprecated"):
        assert scheduler.beta_schedule == "linear"
    with pytest.raises(TypeError, match="predict_epsilon"):
        kind(predict_epsilon=True)
