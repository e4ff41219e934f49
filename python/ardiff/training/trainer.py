"""Trains an `ARModel` on Sun/Shadow or own images, with exact resume."""

from __future__ import annotations

import copy
import hashlib
import math
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .._files import check_writable_folder
from .._files.checkpoints import CheckpointError
from ..data.image_folder import image_folder
from ..data.sun_shadow import sun_shadow
from ..models.checkpoint import CONFIG, WEIGHTS, load_model, save_model
from ..models.image_model import ARModel
from ..models.patchify import patchify
from ..tables.paths import get_path
from .checkpoint import EXTENDED, TrainState, read_state, write_state
from .config import TrainConfig

__all__ = ["TrainConfig", "TrainReport", "Trainer", "TrainingDiverged", "train"]

CHECKPOINT = "checkpoint.safetensors"
WARMUP = 60
DECAY_FROM = 0.4
MAX_WEIGHT = 25.0
MAX_RATIO = 100.0
MISMATCH_RATIO = 3.0
MOST_SKIPPED = 20  # steps in a row
LOG_SIGMA_MEAN, LOG_SIGMA_STD = -0.5, 1.4
MODE_LOG_RATIO_MEAN, MODE_LOG_RATIO_STD = math.log(10.0), 0.8


class TrainingDiverged(FloatingPointError):
    """The loss, the weights or many gradients in a row became NaN or infinite."""


@dataclass(frozen=True)
class TrainReport:
    """folder of the model, steps done in all, mean loss of the last 100 of this call (NaN where the
    run had ended before), seconds of this call, and how many of all steps were skipped, their
    gradient not being finite."""

    folder: Path
    steps: int
    loss: float
    seconds: float
    skipped: int


class Trainer:
    """The state of a run: weights, their average, the optimizer, the random generator."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.path = get_path("edm" if config.preconditioning == "edm" else "vp-cosine")
        self.identity = config.identity()
        if config.data:
            pixels = image_folder(config.data, config.patch_size, max(2, config.batch))
            self.identity |= {"data": hashlib.sha256(pixels).hexdigest()}
        else:
            pixels, _ = sun_shadow(config.images, config.variant, config.seed, np.uint8)
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.model = ARModel(config.model_config(pixels.shape[-1]))
        self.pixels = torch.from_numpy(pixels)
        if config.init and not config.resume:
            self._start_from(load_model(config.init))
        else:
            self._set_normalisation()
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )
        self.generator = torch.Generator().manual_seed(config.seed)
        self.step = self.skipped = self._skipped_in_a_row = 0
        self.extended_from: tuple[int, ...] = ()

    def _start_from(self, model: ARModel) -> None:
        if model.config != self.model.config:
            raise CheckpointError(
                f"init: {self.config.init} is another kind of model; give this run its widths, "
                "depths and preconditioning"
            )
        self.model.load_state_dict(model.state_dict())

    def _set_normalisation(self) -> None:
        sample = self.pixels[:8000].float() / 127.5 - 1
        patches = patchify(sample, self.model.config.patch_size)
        self.model.mean.copy_(patches.mean(0))
        self.model.std.copy_((patches - self.model.mean).square().mean().sqrt())

    def _rand(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float32)

    def _randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float32)

    def _levels(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """n training levels and their loss weights, float64."""
        if self.config.preconditioning == "edm":
            log_sigma = LOG_SIGMA_MEAN + LOG_SIGMA_STD * self._randn(n).double().numpy()
            sigma = np.exp(log_sigma)
            return sigma, 1 + 1 / sigma**2
        stratum = torch.randperm(n, generator=self.generator)
        u = ((stratum + self._rand(n)) / n).double().numpy()
        level = u * float(self.path.level(MAX_RATIO))
        if self.config.mode_levels > 0:
            chosen = self._rand(n).numpy() < self.config.mode_levels
            log_ratio = MODE_LOG_RATIO_MEAN + MODE_LOG_RATIO_STD * self._randn(n).double().numpy()
            ratio = np.clip(np.exp(log_ratio), self.path.ratio_min, MAX_RATIO)
            level = np.where(chosen, self.path.level(ratio), level)
        return level, np.minimum(self.path.sigma(level) ** -2.0, MAX_WEIGHT)

    def _contexts(self, patches: Tensor) -> Tensor:
        """`[B, K, d]` -> `[B K, context width]`, with this run's augmentations."""
        batch, config = len(patches), self.config
        if config.context_noise > 0:
            scale = config.context_noise * self._rand(batch, 1, 1)
            patches = patches + scale * self._randn(*patches.shape)
        contexts = self.model.context.encode(patches).flatten(0, 1)
        if config.context_dropout > 0:
            dropped = self._rand(len(contexts), 1) < config.context_dropout
            contexts = torch.where(dropped, self.model.null, contexts)
        return contexts

    def _shown(self, patches: Tensor, level: np.ndarray) -> Tensor:
        """`[B, K, d]` -> `[B K, d]`: what the inputs are made from, with this run's mismatches."""
        if self.config.mismatch == 0:
            return patches.flatten(0, 1)
        noisy = torch.from_numpy(self.path.ratio(level) > MISMATCH_RATIO)
        swapped = noisy & (self._rand(len(noisy)) < self.config.mismatch)
        others = patches.roll(1, 0).flatten(0, 1)
        return torch.where(swapped[:, None], others, patches.flatten(0, 1))

    def loss(self) -> Tensor:
        """The loss of one fresh batch."""
        index = torch.randint(len(self.pixels), (self.config.batch,), generator=self.generator)
        patches = self.model.to_patches(self.pixels[index].float() / 127.5 - 1)
        contexts = self._contexts(patches)
        x0 = patches.flatten(0, 1)
        level, weight = self._levels(len(x0))
        alpha, sigma = (
            torch.from_numpy(v(level)).float()[:, None] for v in (self.path.alpha, self.path.sigma)
        )
        x = alpha * self._shown(patches, level) + sigma * self._randn(*x0.shape)
        out = self.model.denoiser(x, torch.from_numpy(level).float(), contexts)
        return ((out - x0).square().mean(1) * torch.from_numpy(weight).float()).mean()

    def _rate(self) -> float:
        done = self.step / self.config.steps
        decay = max(0.0, (done - DECAY_FROM) / (1 - DECAY_FROM))
        return (
            self.config.lr
            * min(1.0, (self.step + 1) / WARMUP)
            * (1 + math.cos(math.pi * decay))
            / 2
        )

    def advance(self) -> float:
        """One step; returns its loss.

        Where the gradient is not finite though the loss is, neither optimizer nor average sees it:
        the step is counted in `skipped`, and the weights stay.

        Raises:
            TrainingDiverged: the loss is not finite, or no gradient was for 20 steps in a row.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        loss = self.loss()
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"the loss is {value} at step {self.step}: lower the rate (lr {self.config.lr})"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0).item()
        self.step += 1
        if not math.isfinite(norm):
            self.skipped += 1
            self._skipped_in_a_row += 1
            if self._skipped_in_a_row == MOST_SKIPPED:
                raise TrainingDiverged(
                    f"the gradient was not finite in {MOST_SKIPPED} steps in a row, the last with "
                    f"norm {norm} at step {self.step - 1}: lower the rate (lr {self.config.lr})"
                )
            return value
        self._skipped_in_a_row = 0
        self.optimizer.step()
        decay = min(self.config.ema, (self.step + 1) / (self.step + 10))
        averaged, current = list(self.average.parameters()), list(self.model.parameters())
        with torch.no_grad():
            torch._foreach_lerp_(averaged, current, 1 - decay)
        return value

    def room(self) -> int:
        """Bytes that saving needs: a checkpoint holds the weights, their average and two moments,
        and the one before stays until the new one is whole."""
        weights = sum(value.nbytes for value in self.model.state_dict().values())
        return weights * (4 if self.config.resume else 8)

    def save(self, path: Path) -> None:
        """Everything a resumed run needs, in one file.

        Raises TrainingDiverged, and leaves the file as it was, where the state is not finite.
        """
        state = TrainState(
            self.step,
            self.skipped,
            self.model.state_dict(),
            self.average.state_dict(),
            self.optimizer.state_dict()["state"],
            self.generator.get_state(),
            self.extended_from,
        )
        try:
            write_state(path, state, self.identity)
        except CheckpointError as error:
            raise TrainingDiverged(f"{error}: lower the rate (lr {self.config.lr})") from error

    def restore(self, path: Path) -> None:
        """Takes up the state that `save` wrote; where it raises, nothing has changed.

        Raises CheckpointError for a file that is missing, damaged, no training checkpoint, of
        another config, or that `save` cannot have written.
        """
        state = read_state(path, self.model, self.identity, self.config.steps)
        self.model.load_state_dict(state.model)
        self.average.load_state_dict(state.average)
        whole = self.optimizer.state_dict()
        # What is read is mapped from the file, and the optimizer keeps the tensors it is given.
        moments = {
            index: {name: value.clone() for name, value in entry.items()}
            for index, entry in state.optimizer.items()
        }
        self.optimizer.load_state_dict({**whole, "state": moments})
        self.generator.set_state(state.generator)
        self.step, self.skipped = state.step, state.skipped
        self._skipped_in_a_row = 0
        self.extended_from = state.extended_from


def train(config: TrainConfig, *, progress: bool = True) -> TrainReport:
    """Trains, or goes on training, and leaves the averaged model in `config.out`.

    The run is a function of the config alone (on one machine and number of threads): interrupted
    and resumed it ends in the same bits. A checkpoint is written every `checkpoint_every` steps and
    at the end, never with values that are not finite. A step whose gradient is not finite is
    skipped and counted; a warning at the end says how many were.

    Without `resume`, `out` must be free: it is made if need be, and may hold other files, but no
    model and no checkpoint. With `resume` it must hold the checkpoint of this run; `init` is not
    read again; own images (`data`) must be the same, wherever their folder lies now.

    A run that has ended goes on if `steps` is larger: the schedule of the rate is then that of the
    larger number, so it rises again, and the weights are not those of a run that had this number of
    steps from the start. The model's config records it as `extended_from`.

    Raises:
        CheckpointError: `resume` with a checkpoint that is missing, damaged or of another config;
            or a model or checkpoint already in `out` without `resume`.
        FileNotFoundError: no such `data` folder.
        ValueError: `out` cannot be written, or an image of `data` cannot be used.
        OSError: the disk is full, or becomes so; the last whole checkpoint stays.
        TrainingDiverged: the loss, the weights or 20 gradients in a row are not finite; the last
            checkpoint stays.
    """
    folder = Path(config.out)
    checkpoint = folder / CHECKPOINT
    if not config.resume:
        for file in (CHECKPOINT, WEIGHTS, CONFIG):
            if (folder / file).exists():
                way = "resume that run, or give" if (folder / CHECKPOINT).exists() else "give"
                raise CheckpointError(f"{folder / file} exists: {way} another folder")
    check_writable_folder(folder, "out")
    threads = torch.get_num_threads()
    if config.threads:
        torch.set_num_threads(config.threads)
    try:
        trainer = Trainer(config)
        check_writable_folder(folder, "out", trainer.room())
        if config.resume:
            trainer.restore(checkpoint)
        return _run(trainer, folder, checkpoint, progress)
    finally:
        torch.set_num_threads(threads)


def _run(trainer: Trainer, folder: Path, checkpoint: Path, progress: bool) -> TrainReport:
    config, start = trainer.config, time.perf_counter()
    recent: list[float] = []
    with tqdm(
        total=config.steps, initial=trainer.step, desc="train", unit="step", disable=not progress
    ) as bar:
        while trainer.step < config.steps:
            recent = [*recent[-99:], trainer.advance()]
            bar.update()
            if trainer.step % 20 == 0:
                shown = {"skipped": trainer.skipped} if trainer.skipped else {}
                bar.set_postfix(loss=f"{np.mean(recent):.4f}", **shown, refresh=False)
            if trainer.step % config.checkpoint_every == 0 and trainer.step < config.steps:
                trainer.save(checkpoint)
    trainer.save(checkpoint)
    made_by = trainer.identity | {"threads": config.threads}
    if trainer.extended_from:
        made_by |= {EXTENDED: list(trainer.extended_from)}
    save_model(trainer.average, folder, training=made_by, dtype=getattr(torch, config.dtype))
    loss = float(np.mean(recent)) if recent else math.nan
    if trainer.skipped:
        warnings.warn(
            f"{trainer.skipped} of {trainer.step} steps were skipped, since their gradient was not "
            "finite",
            stacklevel=3,
        )
    return TrainReport(folder, trainer.step, loss, time.perf_counter() - start, trainer.skipped)
