"""A diffusers pipeline with each of the schedulers, on random weights: swap, run, save, load back.

    python examples/diffusers_pipeline.py

Replace the first function by `DDPMPipeline.from_pretrained(...)` for real images.
"""

from __future__ import annotations

import tempfile

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from ardiff.integrations.diffusers import (
    FusedDDIMScheduler,
    FusedDDPMScheduler,
    FusedDPMSolverMultistepScheduler,
    FusedUniPCMultistepScheduler,
    RTKMALAScheduler,
    RTKULDScheduler,
    TableScheduler,
)


def make_pipeline() -> DDPMPipeline:
    """An image pipeline with random weights."""
    unet = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, norm_num_groups=8,
        block_out_channels=(16, 32), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8,
    )  # fmt: skip
    pipeline = DDPMPipeline(unet.eval(), DDPMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def main() -> None:
    """Run each scheduler, then save and load the pipeline with the last."""
    torch.manual_seed(0)
    pipeline = make_pipeline()
    for kind in (
        FusedDDPMScheduler, FusedDDIMScheduler, FusedDPMSolverMultistepScheduler,
        FusedUniPCMultistepScheduler, TableScheduler, RTKULDScheduler, RTKMALAScheduler,
    ):  # fmt: skip
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        options = {"num_inference_steps": 7, "output_type": "pt"}
        images = pipeline(batch_size=2, generator=generators, **options).images
        alone = pipeline(generator=torch.Generator().manual_seed(2), **options).images
        same = (alone[0] - images[1]).abs().max()
        print(f"{kind.__name__}: {tuple(images.shape)}, second image alone differs by {same:.1e}")
    print(f"share of proposals accepted: {pipeline.scheduler.acceptance:.2f}")
    with tempfile.TemporaryDirectory() as folder:
        pipeline.save_pretrained(folder)
        loaded = DDPMPipeline.from_pretrained(folder)
    print(f"loaded back: {type(loaded.scheduler).__name__}")


if __name__ == "__main__":
    main()
