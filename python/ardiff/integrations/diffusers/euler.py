"""diffusers' `EulerDiscreteScheduler` and `EulerAncestralDiscreteScheduler`, one op per step."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import (
    EulerAncestralDiscreteSchedulerOutput,
)
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteSchedulerOutput
from torch import Tensor

from ...tables.diffusers_steps import euler_table
from ...tables.table import StepTable
from ._common import MODULE, output
from ._in_rows import RowScheduler
from ._noise import Generators

OTHER_SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


class SigmaScheduler(RowScheduler):
    """What both have: the state is x0 + sigma eps, and the model is given it over its scale."""

    noise = "none"
    predictions = ("epsilon", "v_prediction")
    kind: type

    def _check_config(self) -> None:
        given = self.config.prediction_type
        if given not in self.predictions:
            raise ValueError(
                f"{type(self).__name__} has prediction_type {', '.join(self.predictions)}, got "
                f"{given!r}; for rectified flow use FusedFlowMatchEulerDiscreteScheduler"
            )

    def _make_table(self, prediction: str | None = None, first: int = 0) -> StepTable:
        timesteps = tuple(self._host_timesteps)
        sigmas = self.sigmas.numpy()[
            : len(timesteps) + 1
        ]  # `log_linear` makes one that no step has
        given = self.config.prediction_type
        given = "sample" if given == "original_sample" else given
        return self._cached(
            (sigmas.tobytes(), timesteps),
            lambda: euler_table(sigmas, timesteps, prediction=given, noise=self.noise),
        )

    def _restart(self, begin_index: int | None = None, device=None) -> None:
        self._scales = (self.sigmas.double() ** 2 + 1).sqrt().tolist()
        super()._restart(begin_index, device)

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor) -> Tensor:
        """The sample over sqrt(sigma^2 + 1), of the call that comes next."""
        if self._own_timesteps is None:
            self._restart(self._begin_index)
        index = self._first_index(timestep) if self._step_index is None else self._step_index
        self._check_index(index)
        self.is_scale_input_called = True
        return sample / self._scales[index]

    def _returned(
        self, model_output, timestep, sample, generator, variance_noise, sample_ids, return_dict
    ) -> Any:
        new, _, x0 = self._advance(
            model_output, timestep, sample, generator, variance_noise, sample_ids
        )
        if not return_dict:
            return new, x0
        return output(self.kind, prev_sample=new, pred_original_sample=x0)


class FusedEulerDiscreteScheduler(SigmaScheduler, EulerDiscreteScheduler):
    """`EulerDiscreteScheduler` with the same arguments and samples within 1e-5, without churn.

    Where diffusers' counts of ``trailing`` steps have one more, at timestep -1, it is left out.

    Raises:
        ValueError: an unknown `prediction_type`.
    """

    __module__ = MODULE
    _add_noise = EulerDiscreteScheduler.add_noise
    kind = EulerDiscreteSchedulerOutput
    predictions = ("epsilon", "sample", "original_sample", "v_prediction")

    @functools.wraps(EulerDiscreteScheduler.__init__)
    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self._follow_config()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
    ) -> None:
        """See `EulerDiscreteScheduler.set_timesteps`; the steps' table is made here.

        Raises:
            ValueError: what diffusers refuses, or timesteps beyond the training's.
        """
        self._follow_config()
        super().set_timesteps(num_inference_steps, timesteps=timesteps, sigmas=sigmas)
        if num_inference_steps is not None and not any(self.config[o] for o in OTHER_SIGMAS):
            self._leave_out_what_is_more(num_inference_steps)
        self._restart(device=device)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
        *,
        s_churn: float = 0.0,
        sample_ids=None,
    ) -> EulerDiscreteSchedulerOutput | tuple[Tensor, Tensor]:
        """One step; the first finds its place by `timestep` or `begin_index`, the others follow it.

        Args:
            model_output: of the sample's shape, the model's at `scale_model_input` of it.
            timestep: an element of `timesteps` or a number.
            sample: `[B, ...]`, float32 or bfloat16; others are computed in float32.
            generator: not used, nothing is drawn.
            return_dict: an output object, else the tuple (prev_sample, pred_original_sample).
            s_churn: 0.
            sample_ids: not used.

        Raises:
            ValueError: no schedule or one that has ended, a wrong shape, or `s_churn` other than 0.
        """
        if s_churn:
            raise ValueError(
                f"{type(self).__name__} has s_churn=0, got {s_churn}: use EulerDiscreteScheduler, "
                "or FusedEulerAncestralDiscreteScheduler for steps that add noise"
            )
        return self._returned(
            model_output, timestep, sample, generator, None, sample_ids, return_dict
        )


class FusedEulerAncestralDiscreteScheduler(SigmaScheduler, EulerAncestralDiscreteScheduler):
    """`EulerAncestralDiscreteScheduler` with the same arguments and, on the same noise, samples
    within 1e-5.

    Raises:
        ValueError: an unknown `prediction_type`.
    """

    __module__ = MODULE
    _add_noise = EulerAncestralDiscreteScheduler.add_noise
    kind = EulerAncestralDiscreteSchedulerOutput
    noise = "ancestral"

    @functools.wraps(EulerAncestralDiscreteScheduler.__init__)
    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self._follow_config()

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """See `EulerAncestralDiscreteScheduler.set_timesteps`; the steps' table is made here.

        Raises:
            ValueError: timesteps beyond the training's.
        """
        self._follow_config()
        super().set_timesteps(num_inference_steps)
        self._leave_out_what_is_more(num_inference_steps)
        self._restart(device=device)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
        *,
        variance_noise: Tensor | None = None,
        sample_ids=None,
    ) -> EulerAncestralDiscreteSchedulerOutput | tuple[Tensor, Tensor]:
        """One step; the first finds its place by `timestep` or `begin_index`, the others follow it.

        Args:
            model_output: of the sample's shape, the model's at `scale_model_input` of it.
            timestep: an element of `timesteps` or a number.
            sample: `[B, ...]`, float32 or bfloat16; others are computed in float32.
            generator: one, or one per row.
            return_dict: an output object, else the tuple (prev_sample, pred_original_sample).
            variance_noise: normals of the sample's shape in place of the generator's.
            sample_ids: as the attribute, for this call.

        Raises:
            ValueError: no schedule or one that has ended, a wrong shape, or a wrong number of ids
                or generators.
        """
        return self._returned(
            model_output, timestep, sample, generator, variance_noise, sample_ids, return_dict
        )
