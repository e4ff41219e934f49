"""What the RTK schedulers share: the schedule, and rows of a table as calls of `step`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from ardiff_kernels import ops

from ...noise import Purpose, counter_word
from ...tables.diffusers_schedules import DiscretePath
from ...tables.paths import FlowPath, Path
from ...tables.table import StepTable
from ._common import (
    ARDIFF,
    KARRAS,
    NAMES,
    FusedScheduler,
    as_output,
    as_state,
    call,
    check_shapes,
    output,
)
from ._noise import Generators
from ._rtk_tables import Stages, read_calls, split_calls

LOG_SNR = "log_snr"
SMALLEST_BAR = 2.0**-24  # at most, in place of alpha^2 = 0, as in DPMSolverMultistepScheduler


def log_snr_timesteps(path: DiscretePath, count: int) -> list[int]:
    """`count` timesteps, evenly in log(sigma / alpha) as far as they are integers, descending."""
    last = len(path)
    if count > last:
        raise ValueError(f"{count} stages need as many training timesteps, there are {last}")
    ratios = np.geomspace(path.ratio_min, path.ratio_max, count)
    inside = np.clip(ratios, path.ratio_min, path.ratio_max)
    place = np.arange(count)
    steps = np.round(path.level(inside)) - place
    steps = np.minimum(np.maximum.accumulate(steps), last - count) + place
    return [int(t) for t in steps[::-1]]


def _version(t: Tensor) -> int | None:
    """How often `t` was written; inference tensors do not count it."""
    return None if t.is_inference() else t._version


class RTKScheduler(FusedScheduler):
    """A table of stages executed call by call; subclasses say which."""

    _compatibles = [*KARRAS, *NAMES]
    _accepted: Sequence[Tensor] = ()

    def _stages(self, path: Path, prediction: str, grid: list, inner: list) -> Stages:
        raise NotImplementedError

    def _set_up(self) -> None:
        c = self.config
        if c.thresholding:
            raise ValueError(f"{type(self).__name__} has no thresholding; pass thresholding=False")
        known = ("epsilon", "sample", "v_prediction", "flow_prediction")
        if c.prediction_type not in known:
            raise ValueError(
                f"unknown prediction_type {c.prediction_type!r}; known: {', '.join(known)}"
            )
        self._schedule = DDPMScheduler(
            num_train_timesteps=c.num_train_timesteps,
            beta_start=c.beta_start,
            beta_end=c.beta_end,
            beta_schedule=c.beta_schedule,
            timestep_spacing="linspace" if c.timestep_spacing == LOG_SNR else c.timestep_spacing,
            trained_betas=c.trained_betas,
            steps_offset=c.steps_offset,
            rescale_betas_zero_snr=c.rescale_betas_zero_snr,
        )
        self.betas, self.alphas = self._schedule.betas, self._schedule.alphas
        self.alphas_cumprod = self._schedule.alphas_cumprod
        if c.rescale_betas_zero_snr:
            self.alphas_cumprod[-1] = min(SMALLEST_BAR, float(self.alphas_cumprod[-2]) / 4)
        self._flow = c.prediction_type == "flow_prediction"
        self._path = FlowPath() if self._flow else DiscretePath(self.alphas_cumprod.numpy())
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        steps = np.arange(c.num_train_timesteps)[::-1].copy()
        self.timesteps = torch.from_numpy(steps.astype(np.float32) if self._flow else steps)
        self._made: Stages | None = None
        self._stages(self._path, self._prediction, self._grid(2), [c.inner])  # checks the options

    @property
    def _prediction(self) -> str:
        return self.config.prediction_type.removesuffix("_prediction" if self._flow else "")

    def _grid(self, count: int) -> list[float]:
        """Levels of `count` stage ends, noisiest first."""
        last = self.config.num_train_timesteps
        if self._flow:
            sigma = np.linspace(1, 1 / last, count)
            shift = self.config.flow_shift
            return (shift * sigma / (1 + (shift - 1) * sigma)).tolist()
        if count == 1:
            return [last - 1]
        if self.config.timestep_spacing == LOG_SNR:
            return log_snr_timesteps(self._path, count)
        self._schedule.set_timesteps(count)
        return self._schedule.timesteps.tolist()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Choose the stages; `timesteps` then holds one element for each model call.

        Args:
            num_inference_steps: the number of model calls, all of which are made. There are as many
                stages of `inner` steps as fit.
            device: of `timesteps` and the table; the samples' device by default.
            timesteps: in place of a number: the levels at the ends of the stages, or one element
                for each call, as `timesteps` has them.

        Raises:
            ValueError: both or none, or timesteps that are not descending.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("pass num_inference_steps or timesteps, one of them")
        scale = self.config.num_train_timesteps if self._flow else 1
        if timesteps is None:
            if num_inference_steps < 1:
                raise ValueError(
                    f"num_inference_steps must be 1 or more, got {num_inference_steps}"
                )
            inner = split_calls(int(num_inference_steps), self.config.inner)
            grid = self._grid(len(inner) + 1)
        else:
            grid, inner = read_calls([float(t) for t in timesteps], self.config.inner)
            grid = [level / scale for level in grid]
        self._made = self._cached(
            (tuple(grid), tuple(inner)),
            lambda: self._stages(self._path, self._prediction, grid, inner),
        )
        table = self._made.table
        self._calls = tuple(np.flatnonzero(table.calls_model).tolist())
        levels = table.level[list(self._calls)] * scale
        levels = levels.astype(np.float32 if self._flow else np.int64)
        self.timesteps = torch.from_numpy(levels)
        self.num_inference_steps = len(levels)
        self._restart(device=device)

    def _restart(self, begin_index: int | None = None, device=None) -> None:
        super()._restart(begin_index, device)
        self._z: Tensor | None = None  # what prev_sample was before it was rounded
        self._given: Tensor | None = None
        self._given_version: int | None = None
        self._velocity: Tensor | None = None
        self._anchor: Tensor | None = None
        self._origin: tuple[Tensor, Tensor] | None = None
        self._accepted: list[Tensor] = []

    def _make_table(self) -> StepTable:
        return self._made.table

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
        *,
        sample_ids=None,
    ) -> SchedulerOutput | tuple[Tensor]:
        """One model call's worth; the first finds its place by `timestep` or `begin_index`.

        A run that begins within a stage draws the stage's origin from the sample by the forward
        process, which leaves the law as it is.

        Args:
            model_output: of the sample's shape, or twice its channels, of which the first half is
                taken (models with learned variances).
            timestep: an element of `timesteps` or a number.
            sample: `[B, ...]`; the chain's state is float32 between steps whatever its dtype. What
                is written into the last prev_sample counts, but not into half precision of
                `torch.inference_mode`, which does not tell.
            generator: one, or one a row.
            return_dict: an output object, else the tuple (prev_sample,).
            sample_ids: as the attribute, for this call.

        Raises:
            ValueError: no schedule or one that has ended, a wrong shape, or a wrong number of ids
                or generators.
        """
        if self.num_inference_steps is None:
            raise ValueError("there is no schedule yet: call set_timesteps first")
        rows, calls, table = self._rows_on(sample.device), self._calls, self._made.table
        first = self._step_index is None
        index = self._first_index(timestep) if first else self._step_index
        if index >= len(calls):
            raise ValueError(f"all {len(calls)} steps are done: call set_timesteps first")
        check_shapes(model_output, sample, True)
        if model_output.shape != sample.shape:
            model_output = model_output[:, : sample.shape[1]]
        out = as_output(model_output)
        kept = sample is self._given and _version(sample) == self._given_version
        z = self._z if kept else as_state(sample, (torch.float32,))
        others = [t for t in (sample, model_output) if t is z or t is out]  # their owners may write
        address = self._address(index, generator, sample_ids, sample)
        start = calls[index]
        if first and self._made.spread[start] is not None:
            self._join(z, self._made.spread[start], start, *address)
        last = index + 1 == len(calls)
        for i in range(start, len(rows.row) if last else calls[index + 1]):
            if table.saves_origin[i]:
                self._origin = tuple(
                    t.clone() if any(t is o for o in others) else t for t in (z, out)
                )
            z, out = self._execute(i, z, out, rows.coef, rows.row[i], address)
        if last and self.config.clip_sample:
            z = z.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        self._step_index = index + 1
        new = z if z.dtype == sample.dtype else z.to(sample.dtype)
        self._z, self._given, self._given_version = z, new, _version(new)
        return output(SchedulerOutput, prev_sample=new) if return_dict else (new,)

    def _join(self, z: Tensor, spread: float, row: int, key: Tensor, stream: Tensor) -> None:
        def normals(purpose: Purpose) -> Tensor:
            drawn = ops.philox_normal(
                key, counter_word(row, purpose), stream, math.prod(z.shape[1:])
            )
            return drawn.view(z.shape)

        self._anchor = z + spread * normals(Purpose.JOIN_ANCHOR)
        self._velocity = normals(Purpose.JOIN_VELOCITY)

    def _execute(
        self, i: int, z: Tensor, out: Tensor, coef: Tensor, row: Tensor, address: tuple
    ) -> tuple[Tensor, Tensor]:
        """Row `i` of the table: the new state, and the model output that belongs to it."""
        table, where = self._made.table, (coef, row, row, *address)
        # before a stage begins its row reads neither velocity nor anchor
        anchor = z if self._anchor is None else self._anchor
        if table.op[i] == "uld":
            velocity = z if self._velocity is None else self._velocity
            z, self._velocity, self._anchor = call(
                ARDIFF.uld_step.default, z, velocity, out, anchor, *where
            )
            return z, out
        if table.op[i] == "diffusion":
            z, self._anchor, _ = call(ARDIFF.diffusion_step.default, z, out, anchor, *where)
            return z, out
        if self._origin is None:  # the run began here: there is nothing to go back to
            return z, out
        x, out_x = self._origin
        z, out, _, _, accepted, _ = call(
            ARDIFF.mala_accept.default, x, z, out_x, out.to(out_x), anchor, *where
        )
        self._accepted.append(accepted)
        return z, out

    @property
    def acceptance(self) -> float | None:
        """Share of proposals accepted since set_timesteps, or None; it waits for the device."""
        return float(torch.stack(self._accepted).float().mean()) if self._accepted else None

    def scale_model_input(self, sample: Tensor, timestep=None) -> Tensor:
        """The sample itself."""
        return sample

    def _noise_levels(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        sigma = timesteps.to(like.device, like.dtype) / self.config.num_train_timesteps
        sigma = sigma.reshape(-1, *[1] * (like.dim() - 1))
        return 1 - sigma, sigma

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x0 + sigma noise at the timesteps `[B]`."""
        if not self._flow:
            return DDPMScheduler.add_noise(self, original_samples, noise, timesteps)
        alpha, sigma = self._noise_levels(timesteps, original_samples)
        return alpha * original_samples + sigma * noise

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What a v_prediction model should return at the timesteps `[B]`; a flow model's is noise
        minus sample."""
        if not self._flow:
            return DDPMScheduler.get_velocity(self, sample, noise, timesteps)
        return noise - sample

    def __len__(self) -> int:
        return self.config.num_train_timesteps
