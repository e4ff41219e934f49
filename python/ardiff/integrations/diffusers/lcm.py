"""`FusedLCMScheduler`: diffusers' `LCMScheduler` with one op per step."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from diffusers import LCMScheduler
from diffusers.schedulers.scheduling_lcm import LCMSchedulerOutput
from torch import Tensor

from ...tables.diffusers_steps import lcm_table
from ...tables.table import StepTable
from ._common import COMPATIBLES, MODULE, in_float32, output
from ._in_rows import RowScheduler
from ._noise import Generators
from .ddpm import NO_ALPHA, PREDICTIONS


class FusedLCMScheduler(RowScheduler, LCMScheduler):
    """`LCMScheduler` with the same arguments and, on the same noise, samples within 1e-5.

    The boundary conditions are folded into the rows. After the last timestep no noise is added,
    also where `timesteps` and a `strength` below 1 are given, where diffusers adds some.
    Thresholding takes further PyTorch ops.

    Raises:
        ValueError: an unknown `prediction_type`.
    """

    __module__ = MODULE
    _compatibles = [*COMPATIBLES, "LCMScheduler"]
    _add_noise = LCMScheduler.add_noise
    clips = thresholds = True

    @functools.wraps(LCMScheduler.__init__)
    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self._follow_config()

    def _check_config(self) -> None:
        given = self.config.prediction_type
        if given not in PREDICTIONS:
            raise ValueError(
                f"{type(self).__name__} has prediction_type {', '.join(PREDICTIONS)}, got {given!r}"
            )

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        original_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        strength: float = 1.0,
    ) -> None:
        """See `LCMScheduler.set_timesteps`; the steps' table is made here.

        Raises:
            ValueError: what diffusers refuses.
        """
        self._follow_config()
        super().set_timesteps(
            num_inference_steps,
            original_inference_steps=original_inference_steps,
            timesteps=timesteps,
            strength=strength,
        )
        self._restart(device=device)

    def _make_table(self, prediction: str | None = None, first: int = 0) -> StepTable:
        c, steps = self.config, tuple(self._host_timesteps)
        prediction, bars = prediction or c.prediction_type, self.alphas_cumprod.cpu().numpy()
        if c.clip_sample and not c.thresholding:
            bars = np.maximum(bars, bars.dtype.type(NO_ALPHA))
        return self._cached(
            (bars.tobytes(), steps, prediction),
            lambda: lcm_table(bars, steps, prediction=prediction, scaling=c.timestep_scaling),
        )

    def _memory_of(self, x: Tensor, out: Tensor, table: StepTable) -> Tensor:
        """No row reads it: what it keeps is returned."""
        return x

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
    ) -> LCMSchedulerOutput | tuple[Tensor, Tensor]:
        """One step; the first finds its place by `timestep` or `begin_index`, the others follow it.

        Args:
            model_output: of the sample's shape.
            timestep: an element of `timesteps` or a number.
            sample: `[B, ...]`, float32 or bfloat16; others are computed in float32.
            generator: one, or one per row.
            return_dict: an output object, else the tuple (prev_sample, denoised).
            variance_noise: normals of the sample's shape in place of the generator's.
            sample_ids: as the attribute, for this call.

        Raises:
            ValueError: no schedule or one that has ended, a wrong shape, or a wrong number of ids
                or generators.
        """
        new, denoised, _ = self._advance(
            model_output, timestep, sample, generator, variance_noise, sample_ids
        )
        if denoised.dtype != new.dtype:
            denoised = denoised.to(new.dtype)
        if not return_dict:
            return new, denoised
        return output(LCMSchedulerOutput, prev_sample=new, denoised=denoised)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What a v_prediction model should return, computed in float32 at least."""
        return in_float32(super().get_velocity, sample, noise, timesteps)
