"""What decides a training run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields

from ..data.sun_shadow import SIZE, VARIANTS
from ..models.image_model import ModelConfig

PRECONDITIONINGS = ("cosine", "edm")
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        variant: of the Sun/Shadow images, `free` or `paper`.
        images: number of Sun/Shadow images to draw, with `seed`, as the training set.
        data: folder of own images instead: square, of one size, in all common formats.
        patch_size: pixels along a side of a patch; it divides the side of an image.
        batch: images per step, all their patches.
        steps: optimizer steps in all; resuming a run that has ended with more steps extends it.
        lr: peak learning rate; linear warm-up over 60 steps, cosine decay to 0 over the last 60%.
        ema: decay of the averaged weights, which are the model.
        preconditioning: `cosine` (path vp-cosine, data prediction, loss weight min(1/sigma^2, 25))
            or `edm` (Karras et al. 2022).
        width: of the diffusion head.
        depth: residual blocks of the diffusion head.
        context_width: of the context encoder.
        context_depth: layers of the context encoder.
        context_dropout: share of contexts replaced by a learned null one, for guidance.
        context_noise: largest standard deviation of noise on the patches that make the context.
        mode_levels: share of the levels drawn log-normally around sigma/alpha = 10, where a sample
            decides between modes (`cosine` only).
        mismatch: share of the inputs at sigma/alpha above 3 that are made from another image,
            while the target stays: the head learns to believe the context where the two disagree.
        init: a model folder or shipped name to start from; a resumed run does not read it.
        seed: of the training set, the first weights and all noise, any int64.
        out: folder for the model and the checkpoint; unless `resume`, one that holds neither.
        resume: go on from the checkpoint in `out`.
        checkpoint_every: steps between checkpoints.
        threads: of the CPU; 0 leaves torch's own number.
        dtype: of the saved model, float32 or bfloat16.
    """

    variant: str = "free"
    images: int = 40_000
    batch: int = 128
    steps: int = 2_500
    lr: float = 1e-3
    ema: float = 0.999
    preconditioning: str = "cosine"
    width: int = 288
    depth: int = 3
    context_width: int = 256
    context_depth: int = 2
    context_dropout: float = 0.0
    context_noise: float = 0.0
    mode_levels: float = 0.0
    mismatch: float = 0.0
    init: str = ""
    seed: int = 0
    out: str = field(default="runs/sun-shadow", metadata={"free": True})
    resume: bool = field(default=False, metadata={"free": True})
    checkpoint_every: int = field(default=500, metadata={"free": True})
    threads: int = field(default=0, metadata={"free": True})
    dtype: str = field(default="float32", metadata={"free": True})
    data: str = field(default="", metadata={"free": True})  # its images count, not where they lie
    patch_size: int = 16

    def __post_init__(self) -> None:
        for name, known in (
            ("variant", VARIANTS),
            ("preconditioning", PRECONDITIONINGS),
            ("dtype", DTYPES),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        for name in (
            "images",
            "batch",
            "steps",
            "width",
            "depth",
            "checkpoint_every",
            "patch_size",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("ema", "context_dropout", "mode_levels", "mismatch"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, got {self.lr}")
        if not self.context_noise >= 0:
            raise ValueError(f"context_noise must not be negative, got {self.context_noise}")
        if self.data and (self.variant, self.images) != (TrainConfig.variant, TrainConfig.images):
            raise ValueError("data takes all images of its folder: leave out variant and images")
        if self.threads < 0:
            raise ValueError(f"threads must not be negative, got {self.threads}")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"the seed must fit in int64, got {self.seed}")

    def identity(self) -> dict:
        """The fields that decide the weights: those that a resumed run must share."""
        free = {f.name for f in fields(self) if f.metadata.get("free")}
        found = {k: v for k, v in asdict(self).items() if k not in free}
        if self.patch_size == TrainConfig.patch_size:
            del found["patch_size"]  # older checkpoints lack it
        return found

    def model_config(self, image_size: int = SIZE) -> ModelConfig:
        """The model of this run for images of `image_size` x `image_size` pixels."""
        edm = self.preconditioning == "edm"
        return ModelConfig(
            image_size=image_size,
            patch_size=self.patch_size,
            context_width=self.context_width,
            context_depth=self.context_depth,
            head_width=self.width,
            head_depth=self.depth,
            path="edm" if edm else "vp-cosine",
            preconditioning="edm" if edm else "none",
            null_context=self.context_dropout > 0,
            grid="karras",
            ratio_min=0.05,
            rho=3.0,
        )
