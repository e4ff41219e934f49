"""An autoregressive diffusion model: a context encoder over patches and a diffusion head."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor, nn

from ..ar.context import PatchContext
from ..heads.edm import EDMHead
from ..heads.mar import DiffusionHead
from ..tables.paths import GRIDS, PATHS, PREDICTIONS
from .patchify import patchify, unpatchify

PRECONDITIONINGS = ("none", "edm")


@dataclass(frozen=True)
class ModelConfig:
    """What a model is; saved as `config.json` beside its weights.

    path: Gaussian path whose levels the head was trained on. prediction: what its output means.
    preconditioning: `none` or `edm` (needs path `edm` and prediction `sample`). null_context: has a
    learned context for guidance, from training with context dropout. grid, ratio_max, ratio_min,
    rho: the time grid (`ardiff.tables.paths.time_grid`) it is sampled on unless told otherwise.
    """

    image_size: int = 32
    patch_size: int = 16
    channels: int = 3
    context_width: int = 256
    context_depth: int = 2
    context_heads: int = 4
    head_width: int = 288
    head_depth: int = 3
    path: str = "vp-cosine"
    prediction: str = "sample"
    preconditioning: str = "none"
    null_context: bool = False
    grid: str = "log-snr"
    ratio_max: float = 40.0
    ratio_min: float = 0.002
    rho: float = 7.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value).__name__ != field.type:
                raise ValueError(f"{field.name} must be of type {field.type}, got {value!r}")
            if field.type in ("int", "float") and not value > 0:
                raise ValueError(f"{field.name} must be positive, got {value}")
            if field.type == "float" and math.isinf(value):
                raise ValueError(f"{field.name} must be finite, got {value}")
        for name, known in (
            ("path", PATHS),
            ("prediction", PREDICTIONS),
            ("preconditioning", PRECONDITIONINGS),
            ("grid", GRIDS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"patch_size must divide image_size, got {self.patch_size} and {self.image_size}"
            )
        edm = (self.path, self.prediction) == ("edm", "sample")
        if self.preconditioning == "edm" and not edm:
            raise ValueError("edm preconditioning needs path edm and prediction sample")

    @property
    def patches(self) -> int:
        """Patches of an image, K."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def patch_dim(self) -> int:
        """Elements of a patch, d."""
        return self.channels * self.patch_size**2

    @staticmethod
    def from_dict(values: dict) -> ModelConfig:
        """Raises ValueError for unknown or missing names and for values out of range."""
        known = {field.name for field in fields(ModelConfig)}
        unknown, missing = sorted(set(values) - known), sorted(known - set(values))
        if unknown or missing:
            problem = [f"unknown {', '.join(unknown)}"] if unknown else []
            problem += [f"missing {', '.join(missing)}"] if missing else []
            raise ValueError(f"model config: {'; '.join(problem)}")
        return ModelConfig(**values)

    def to_dict(self) -> dict:
        return asdict(self)

    def grid_options(self) -> dict:
        """The time grid as options of `ardiff.solver`."""
        return {name: getattr(self, name) for name in ("grid", "ratio_max", "ratio_min", "rho")}


class ARModel(nn.Module):
    """p(image) = prod_k p(patch k | patches before k), each factor a diffusion model.

    Patches live in normalised units, (pixel - mean[k]) / std: zero mean at every position, unit
    variance over all.

    Attributes:
        context: the `PatchContext`.
        head: the `DiffusionHead`.
        denoiser: what a sampler calls, the head within its preconditioning: `denoiser(x, level, c)`
            and `denoiser.hoist(levels, c)`.
        null: the context that stands for none, `[context_width]`, or None.
        block, place: one patch a step, in one order, as `ardiff.ar.patch_model.PatchModel` has it.
    """

    block = 1
    place = None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.context = PatchContext(
            config.patch_dim,
            config.patches,
            config.context_width,
            config.context_depth,
            config.context_heads,
        )
        self.head = DiffusionHead(
            config.patch_dim,
            config.context_width,
            config.head_width,
            config.head_depth,
        )
        self.null = nn.Parameter(torch.zeros(config.context_width)) if config.null_context else None
        self.register_buffer("mean", torch.zeros(config.patches, config.patch_dim))
        self.register_buffer("std", torch.ones(()))

    @property
    def denoiser(self) -> DiffusionHead | EDMHead:
        return EDMHead(self.head) if self.config.preconditioning == "edm" else self.head

    @property
    def encoder(self) -> PatchContext:
        return self.context

    @property
    def start(self) -> Tensor:
        """The tokens before the first patch, `[1, context_width]`."""
        return self.context.start[None]

    @property
    def patch_dim(self) -> int:
        return self.config.patch_dim

    @property
    def path(self) -> str:
        return self.config.path

    @property
    def prediction(self) -> str:
        return self.config.prediction

    @property
    def grid(self) -> dict:
        return self.config.grid_options()

    def tokens(self, last: Tensor, fresh: Tensor, target: Tensor) -> Tensor:
        """The next tokens, as `PatchModel.tokens`."""
        return self.context.tokens(last, fresh)

    def to_patches(self, images: Tensor) -> Tensor:
        """Images `[n, C, H, W]` in [-1, 1] -> normalised patches `[n, K, d]`."""
        return self.normalised(patchify(images, self.config.patch_size))

    def normalised(self, pixels: Tensor) -> Tensor:
        """The first k patches as pixels `[n, k, d]` -> in normalised units."""
        return (pixels - self.mean[: pixels.shape[1]]) / self.std

    def to_images(self, patches: Tensor) -> Tensor:
        """The inverse of `to_patches`; the values are not clipped."""
        pixels = patches * self.std + self.mean
        return unpatchify(pixels, self.config.patch_size, self.config.channels)

    def patch_pixels(self, patch: Tensor, k: int | Tensor) -> Tensor:
        """Normalised patch k `[n, d]` -> its pixels `[n, C, p, p]`."""
        c, p = self.config.channels, self.config.patch_size
        return (patch * self.std + self.mean[k]).view(-1, c, p, p)

    def clip_patch(self, patch: Tensor, k: int) -> Tensor:
        """Normalised patch k `[n, d]` with its pixels clipped to [-1, 1]."""
        return self.clip(patch, k)

    def clip(self, patch: Tensor, place: int | Tensor) -> Tensor:
        """As `clip_patch`; `place` may be int64 `[n]`, which patch each is."""
        low, high = ((bound - self.mean[place]) / self.std for bound in (-1, 1))
        return patch.clamp(low, high)

    def finished(self, patch: Tensor, k: int | Tensor) -> Tensor:
        """Normalised patch k `[n, d]` -> its pixels `[n, C, p, p]`, clipped to [-1, 1]; k may be
        int64 `[n]`, which patch each is."""
        return self.patch_pixels(patch, k).clamp(-1, 1)

    def assemble(self, patches: list[Tensor]) -> Tensor:
        """Finished patches `[n, C, p, p]` in raster order -> images `[n, C, H, W]`."""
        side = round(len(patches) ** 0.5)
        rows = [torch.cat(patches[i : i + side], 3) for i in range(0, len(patches), side)]
        return torch.cat(rows, 2)

    def nothing(self) -> Tensor:
        """No images: `[0, C, H, W]`."""
        size = self.config.image_size
        return self.mean.new_empty(0, self.config.channels, size, size)
