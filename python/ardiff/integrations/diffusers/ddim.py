"""`FusedDDIMScheduler`: diffusers' `DDIMScheduler` with one op per step."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from torch import Tensor

from ...tables.diffusers_steps import ddim_table
from ...tables.table import StepTable
from ._common import MODULE, check_spacing, in_float32, output
from ._in_rows import RowScheduler
from ._noise import Generators
from .ddpm import NO_ALPHA, PREDICTIONS


class FusedDDIMScheduler(RowScheduler, DDIMScheduler):
    """`DDIMScheduler` with the same arguments and, on the same noise, samples within 1e-5.

    A step's `timestep` may be in any order, as in :class:`FusedDDPMScheduler`; it goes
    `num_train_timesteps // num_inference_steps` timesteps down, whatever the spacing, as diffusers'
    does. Thresholding takes further PyTorch ops.

    Raises:
        ValueError: an unknown `prediction_type`.
    """

    __module__ = MODULE
    _add_noise = DDIMScheduler.add_noise
    clips = thresholds = True

    @functools.wraps(DDIMScheduler.__init__)
    def __init__(self, *args, **options) -> None:
        self._kind = 0.0, False  # eta and use_clipped_model_output of the table
        super().__init__(*args, **options)
        self._follow_config()

    def _check_config(self) -> None:
        given = self.config.prediction_type
        if given not in PREDICTIONS:
            raise ValueError(
                f"{type(self).__name__} has prediction_type {', '.join(PREDICTIONS)}, got "
                f"{given!r}; for rectified flow use FusedFlowMatchEulerDiscreteScheduler"
            )

    def _config_changed(self) -> None:
        """No step depends on the ones before it: the new configuration counts from here on."""
        self._follow_config()
        self._rows = self._plain_rows = None

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """See `DDIMScheduler.set_timesteps`; the steps' table is made here.

        Raises:
            ValueError: more steps than training timesteps, or timesteps beyond those.
        """
        self._follow_config()
        super().set_timesteps(num_inference_steps)
        spaced = check_spacing(self.timesteps.numpy(), num_inference_steps, self.config)
        self.timesteps = torch.from_numpy(spaced)
        self._restart(device=device)

    def _restart(self, begin_index: int | None = None, device=None) -> None:
        # add_noise moves the tensor to the samples' device, where a step must not read it
        self._bars = self.alphas_cumprod.cpu().numpy()
        super()._restart(begin_index, device)

    @property
    def _bounded(self) -> bool:
        """Whether the data prediction is bounded, and the noise prediction is not made of it."""
        return (self.config.clip_sample or self.config.thresholding) and not self._kind[1]

    def _make_table(self, prediction: str | None = None, first: int = 0) -> StepTable:
        c, steps, (eta, _) = self.config, tuple(self._host_timesteps), self._kind
        bars, final = self._bars, float(self.final_alpha_cumprod)
        if c.clip_sample and not c.thresholding:
            bars = np.maximum(bars, bars.dtype.type(NO_ALPHA))
        stride = c.num_train_timesteps // (self.num_inference_steps or c.num_train_timesteps)
        options = {
            "prediction": c.prediction_type,
            "stride": stride,
            "final": final,
            "eta": eta,
            "bounded": self._bounded,
            "x0_given": prediction is not None,
        }
        place = (bars.tobytes(), steps, *options.values())
        return self._cached(place, lambda: ddim_table(bars, steps, **options))

    def _index(self, timestep: Any, device: torch.device) -> int:
        index = self._view_index(timestep)
        if index is None and isinstance(timestep, Tensor) and timestep.device.type != "cpu":
            return self._begin_index or 0 if self._step_index is None else self._step_index
        return self.index_for_timestep(timestep) if index is None else index

    def _memory_of(self, x: Tensor, out: Tensor, table: StepTable) -> Tensor:
        """The output: the noise prediction is made of it where the data prediction is bounded."""
        return out.to(x.dtype) if self._bounded else x

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
        *,
        sample_ids=None,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """One step from `timestep`.

        Args:
            model_output: of the sample's shape.
            timestep: an element of `timesteps` or a number. The value of another tensor is read
                on the CPU; on a device the step after the last one is meant.
            sample: `[B, ...]`, float32 or bfloat16; others are computed in float32.
            eta: of the noise, from 0 (none is drawn) to 1. Another value than before makes the
                table anew.
            use_clipped_model_output: whether the noise prediction is made of the bounded data
                prediction.
            generator: one, or one per row.
            variance_noise: normals of the sample's shape in place of the generator's.
            return_dict: an output object, else the tuple (prev_sample, pred_original_sample).
            sample_ids: as the attribute, for this call.

        Raises:
            ValueError: no schedule, a wrong shape, `eta` outside [0, 1], a timestep that is not in
                the schedule or after its end, or a wrong number of ids or generators.
        """
        if (eta, use_clipped_model_output) != self._kind:
            self._kind = eta, use_clipped_model_output
            self._rows = self._plain_rows = None
        new, _, x0 = self._advance(
            model_output, timestep, sample, generator, variance_noise, sample_ids
        )
        if not return_dict:
            return new, x0
        return output(DDIMSchedulerOutput, prev_sample=new, pred_original_sample=x0)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What a v_prediction model should return, computed in float32 at least."""
        return in_float32(super().get_velocity, sample, noise, timesteps)
