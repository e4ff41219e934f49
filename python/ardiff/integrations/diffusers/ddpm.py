"""`FusedDDPMScheduler`: diffusers' `DDPMScheduler` with one op per step."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from torch import Tensor

from ardiff_kernels import ops

from ...loop.rows import launch
from ...noise import counter_word
from ...tables.diffusers_schedules import VARIANCES, ddpm_table
from ...tables.table import StepTable
from ._common import (
    MODULE,
    FusedScheduler,
    Placed,
    as_output,
    as_state,
    check_shapes,
    check_spacing,
    in_float32,
    output,
    threshold,
)
from ._noise import Generators

PREDICTIONS = ("epsilon", "sample", "v_prediction")
NO_ALPHA = 1e-30  # in place of alpha^2 = 0, where epsilon says nothing but the clip bounds x0


class FusedDDPMScheduler(FusedScheduler, DDPMScheduler):
    """`DDPMScheduler` with the same arguments, results and state (none between steps).

    On the same noise its samples are `DDPMScheduler`'s within 1e-5. Two things differ: the noise of
    a generator is not `torch.randn`'s (see :class:`~ardiff.integrations.diffusers._noise.Noise`),
    and `variance_type="fixed_large_log"` gives the variance of ``fixed_large`` where diffusers
    gives NaN. Thresholding and ``learned`` variances take further PyTorch ops. A count of
    ``trailing`` steps for which diffusers makes one more, at timestep -1, makes that many here.

    A step's `timestep` may be in any order. But a tensor on a device that is not an element of
    `timesteps` is not read: it means the step after the last one, at first `begin_index` or 0.

    Raises:
        ValueError: an unknown `prediction_type` or `variance_type`.
    """

    __module__ = MODULE
    _add_noise = DDPMScheduler.add_noise

    @functools.wraps(DDPMScheduler.__init__)
    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self._follow_config()

    @property
    def variance_type(self) -> str:
        """That of the configuration; None there means fixed_small, as in `DDPMScheduler`."""
        return self.config.variance_type or "fixed_small"

    @variance_type.setter
    def variance_type(self, value: str | None) -> None:
        self.register_to_config(variance_type=value)

    def _check_config(self) -> None:
        given = self.config.prediction_type
        if given not in PREDICTIONS:
            raise ValueError(
                f"{type(self).__name__} has prediction_type {', '.join(PREDICTIONS)}, got "
                f"{given!r}; for rectified flow use TableScheduler(solver='ddpm')"
            )
        if self.variance_type not in VARIANCES:
            raise ValueError(
                f"unknown variance_type {self.variance_type!r}; known: {', '.join(VARIANCES)}"
            )

    def _config_changed(self) -> None:
        """No step depends on the ones before it: the new configuration counts from here on."""
        self._follow_config()
        self._rows = self._plain_rows = None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[int] | None = None,
    ) -> None:
        """See `DDPMScheduler.set_timesteps`; the table of the steps is made here."""
        if num_inference_steps is None and timesteps is None:
            raise ValueError("pass num_inference_steps or timesteps")
        self._follow_config()
        super().set_timesteps(num_inference_steps, timesteps=timesteps)
        if timesteps is None:
            spaced = check_spacing(self.timesteps.numpy(), num_inference_steps, self.config)
            self.timesteps = torch.from_numpy(spaced)
        self._restart(device=device)

    def _restart(self, begin_index: int | None = None, device=None) -> None:
        super()._restart(begin_index, device)
        self._plain_rows: Placed | None = None

    def _make_table(self, prediction: str | None = None) -> StepTable:
        bars = self.alphas_cumprod.cpu().numpy()
        if self.config.clip_sample and not self.config.thresholding:
            bars = np.maximum(bars, bars.dtype.type(NO_ALPHA))
        prediction = prediction or self.config.prediction_type
        steps, variance = self._host_timesteps, self.variance_type
        return self._cached(
            (bars.tobytes(), tuple(steps), prediction, variance),
            lambda: ddpm_table(bars, steps, prediction=prediction, variance=variance),
        )

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
        *,
        variance_noise: Tensor | None = None,
        sample_ids=None,
    ) -> DDPMSchedulerOutput | tuple[Tensor, Tensor]:
        """One step from `timestep` to the next.

        Args:
            model_output: of the sample's shape, or twice its channels with learned variances.
            timestep: an element of `timesteps` or a number. The value of another tensor is read
                on the CPU; on a device the step after the last one is meant.
            sample: `[B, ...]`, float32 or bfloat16; others are computed in float32.
            generator: one, or one per row.
            return_dict: an output object, else the tuple (prev_sample, pred_original_sample).
            variance_noise: normals of the sample's shape in place of the generator's.
            sample_ids: as the attribute, for this call.

        Raises:
            ValueError: a wrong shape, a timestep that is not in the schedule or after its end, or
                a wrong number of ids or generators.
        """
        rows = self._rows_on(sample.device)
        index = self._view_index(timestep)
        if index is None and isinstance(timestep, Tensor) and timestep.device.type != "cpu":
            index = self._begin_index or 0 if self._step_index is None else self._step_index
        elif index is None:
            index = self.index_for_timestep(timestep)
        if index >= len(rows.row):
            raise ValueError(f"all {len(rows.row)} steps are done: call set_timesteps first")
        self._step_index = index + 1
        check_shapes(model_output, sample, self.variance_type in ("learned", "learned_range"))
        draws = variance_noise is None
        key, stream = self._address(index, generator, sample_ids, sample, draws)
        clamp = self.config.clip_sample_range if self.config.clip_sample else None
        x, out = as_state(sample), as_output(model_output)
        noise = None if variance_noise is None else as_state(variance_noise, (torch.float32,))
        if self.variance_type == "learned" or self.config.thresholding:
            rows, out, noise, clamp = self._plain(x, out, noise, index, key, stream, clamp)
        row = rows.row[index]
        new, _, x0 = launch(
            "diffusion",
            x,
            out,
            x,
            rows.coef,
            row,
            row,
            key,
            stream,
            noise=noise,
            x0_clamp=clamp,
        )
        if new.dtype != sample.dtype:
            new, x0 = new.to(sample.dtype), x0.to(sample.dtype)
        if not return_dict:
            return new, x0
        return output(DDPMSchedulerOutput, prev_sample=new, pred_original_sample=x0)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What a v_prediction model should return, computed in float32 at least."""
        return in_float32(super().get_velocity, sample, noise, timesteps)

    def _plain(self, x, out, noise, index: int, key, stream, clamp) -> tuple:
        """What the op cannot do, in PyTorch: rows, output, noise and clamp that leave it the rest.

        A thresholded data prediction is the output of a model that predicts data; noise with a
        learned deviation is given noise.
        """
        rows, channels = self._rows, x.shape[1]
        mean, learned = out[:, :channels], out[:, channels:]
        if self.config.thresholding:
            p_x, p_o = (float(rows.table.column(name)[index]) for name in ("p_x", "p_o"))
            ratio, largest = self.config.dynamic_thresholding_ratio, self.config.sample_max_value
            mean, clamp = threshold(p_x * x.float() + p_o * mean.float(), ratio, largest), None
            if self._plain_rows is None or self._plain_rows.device != x.device:
                self._plain_rows = Placed(self._make_table("sample"), x.device)
            rows = self._plain_rows
        if self.variance_type == "learned":
            if learned.shape != x.shape:
                raise ValueError("variance_type='learned' needs an output of twice the channels")
            if noise is None:
                noise = ops.philox_normal(key, counter_word(index), stream, math.prod(x.shape[1:]))
            noise = noise.view(x.shape) * learned.float().sqrt()
        elif learned.shape[1]:
            mean = torch.cat([mean, learned.to(mean.dtype)], 1)
        return rows, mean, noise, clamp
