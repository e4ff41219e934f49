"""The problem that a plan is for: a model whose curvature is measured, or numbers that are given.

The theory knows of a kernel that its curvature is in [L, 3 L]; a model that is measured is known
better. In the units of a stage's envelope, of width w, no law of data has a kernel of curvature
above 1: with q = 2 L that of the kernel's quadratic part, 1 / w^2 = q + 1 / sigma^2, and an exact
score has curvature 1 / sigma^2 at most. A learned score may have more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path as FilePath

import numpy as np

from ..ar.sampler import load
from ..models.image_model import ARModel
from ..tables.paths import OUPath, get_path, time_grid
from .contexts import contexts_of
from .curvature import Curvature, curvature
from .theory import kernel_curvature, ou_time, stage_size

RATIO_MAX, RATIO_MIN = 40.0, 0.002  # ends of a grid, as of ardiff.solver
LEVELS, SAMPLES = 12, 16  # at which the curvature is looked at

Range = tuple[float, float]


@dataclass(frozen=True)
class Problem:
    """What a plan starts from.

    Attributes:
        path: its name.
        dim, patches: elements of a whole sample, and K.
        horizon: T, the OU time of the noisiest level.
        lipschitz: L on the OU path.
        kernel: (low, high), curvature of the kernels at the theory's eta, in OU units.
        envelope: the same in units of the stages' envelopes.
        smallest: standard deviation of the data's narrowest direction, by L at the clean end.
        model, curvature: measured, or None where the numbers are given.
    """

    path: str
    dim: int
    patches: int
    horizon: float
    lipschitz: float
    kernel: Range
    envelope: Range
    smallest: float
    model: ARModel | None = None
    curvature: Curvature | None = None

    @property
    def patch_dim(self) -> int:
        """Elements of a patch."""
        return self.dim // self.patches


def given_problem(
    path: str, dim: int, patches: int, lipschitz: float, model: ARModel | None = None
) -> Problem:
    """A problem of which L is given, and with it all that the theory knows."""
    kernel = kernel_curvature(lipschitz, stage_size(lipschitz))
    horizon, clean = _ends(path, model)
    variance = float(OUPath().sigma(OUPath().level(clean))) ** 2
    envelope = lipschitz / (2 * lipschitz + 1 / variance), 1.0
    smallest = 1 / math.sqrt(lipschitz)
    return Problem(path, dim, patches, horizon, lipschitz, kernel, envelope, smallest, model)


def measured_problem(model: ARModel, guidance: float | None, seed: int) -> Problem:
    """A problem whose curvature is measured, at the levels of the model's own grid and at contexts
    of images that it draws.

    L is the largest in absolute value over all levels, of curvatures in OU units.

    Raises:
        FloatingPointError: a score that is not finite.
    """
    config = model.config
    horizon, _ = _ends(config.path, model)
    levels = time_grid(config.path, LEVELS, ratio_max=config.ratio_max, ratio_min=config.ratio_min)
    contexts = contexts_of(model, SAMPLES, guidance, seed)
    found = curvature(
        model.denoiser, model.patch_dim, path=config.path, prediction=config.prediction,
        levels=levels, samples=SAMPLES, condition=contexts, seed=seed,
        uncond=None if guidance is None else model.null.expand(SAMPLES, -1), guidance=guidance,
        device=contexts.device,
    )  # fmt: skip
    scale = found.alpha**2 + found.sigma**2
    low, high = found.lowest.min(1) * scale, found.largest * scale
    L = float(max(np.abs(low).max(), np.abs(high).max()))
    squared_width = 1 / (2 * L + scale / found.sigma**2)
    return Problem(
        config.path, config.patches * config.patch_dim, config.patches, horizon, L,
        kernel=(2 * L + float(low.min()), 2 * L + float(high.max())),
        envelope=_range((2 * L + low) * squared_width, (2 * L + high) * squared_width),
        smallest=1 / math.sqrt(max(float(found.largest[-1]) * float(found.alpha[-1]) ** 2, 1e-12)),
        model=model, curvature=found,
    )  # fmt: skip


def load_problem(
    name: str | FilePath, lipschitz: float | None, guidance: float | None, seed: int
) -> Problem:
    """That of a model; measured, unless L is given.

    Raises:
        ValueError: guidance of a model that was trained without; CheckpointError as of
            :func:`ardiff.load`.
    """
    model = load(name)
    if guidance is not None and model.null is None:
        raise ValueError("guidance: the model was trained without context dropout")
    if lipschitz is None:
        return measured_problem(model, guidance, seed)
    config = model.config
    dim = config.patches * config.patch_dim
    return given_problem(config.path, dim, config.patches, lipschitz, model)


def _ends(path: str, model: ARModel | None) -> tuple[float, float]:
    """T, and sigma / alpha at the clean end of the grid."""
    found = get_path(path)
    high, low = (
        (RATIO_MAX, RATIO_MIN)
        if model is None
        else (model.config.ratio_max, model.config.ratio_min)
    )
    high, low = min(high, found.ratio_max), max(low, found.ratio_min)
    return ou_time(found, float(found.level(high))), low


def _range(low: np.ndarray, high: np.ndarray) -> Range:
    return float(low.min()), float(high.max())
