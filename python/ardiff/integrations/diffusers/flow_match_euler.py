"""`FusedFlowMatchEulerDiscreteScheduler`: the scheduler of SD3, FLUX, ..., one op per step."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteSchedulerOutput,
)
from torch import Tensor

from ...tables.diffusers_steps import euler_table
from ...tables.table import StepTable
from ._common import COMPATIBLES, MODULE, output
from ._in_rows import RowScheduler
from ._noise import Generators


class FusedFlowMatchEulerDiscreteScheduler(RowScheduler, FlowMatchEulerDiscreteScheduler):
    """`FlowMatchEulerDiscreteScheduler` with the same arguments and, on the same noise, samples
    within 1e-5; its options of the sigmas, `invert_sigmas` and `stochastic_sampling` count.

    Raises:
        ValueError: `invert_sigmas` with `stochastic_sampling`, or what diffusers refuses.
    """

    __module__ = MODULE
    _compatibles = [*COMPATIBLES, "FlowMatchEulerDiscreteScheduler"]

    @functools.wraps(FlowMatchEulerDiscreteScheduler.__init__)
    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self._follow_config()

    @classmethod
    def extract_init_dict(cls, config_dict: dict, **options) -> tuple:
        """As `ConfigMixin`'s; `flow_shift` of the other schedulers is `shift`.

        Raises:
            ValueError: the configuration of a model that predicts no velocity.
        """
        if "shift" not in config_dict:
            given = config_dict.get("prediction_type", "flow_prediction")
            if given != "flow_prediction":
                raise ValueError(
                    f"{cls.__name__} needs a flow model, this configuration has prediction_type "
                    f"{given!r}: use FusedEulerDiscreteScheduler"
                )
            if "flow_shift" in config_dict:
                config_dict = {**config_dict, "shift": config_dict["flow_shift"]}
        taken, unused, kept = super().extract_init_dict(config_dict, **options)
        for name in ("prediction_type", "use_flow_sigmas", "flow_shift"):
            # the other schedulers make these of `shift` again, which may have changed
            unused.pop(name, None)
            kept.pop(name, None)
        return taken, unused, kept

    def _check_config(self) -> None:
        if self.config.invert_sigmas and self.config.stochastic_sampling:
            raise ValueError(
                "stochastic_sampling has no inverted sigmas: pass invert_sigmas=False or "
                "stochastic_sampling=False"
            )

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """See `FlowMatchEulerDiscreteScheduler.set_timesteps`; the steps' table is made here.

        Raises:
            ValueError: neither a number of steps nor sigmas or timesteps, or what diffusers
                refuses.
        """
        if num_inference_steps is None and sigmas is None and timesteps is None:
            raise ValueError("pass num_inference_steps, sigmas or timesteps")
        self._follow_config()
        super().set_timesteps(num_inference_steps, sigmas=sigmas, mu=mu, timesteps=timesteps)
        self._restart(device=device)

    def _make_table(self, prediction: str | None = None, first: int = 0) -> StepTable:
        c, sigmas, timesteps = self.config, self.sigmas.numpy(), tuple(self._host_timesteps)
        return self._cached(
            (sigmas.tobytes(), timesteps),
            lambda: euler_table(
                sigmas,
                timesteps,
                prediction="flow",
                noise="renewed" if c.stochastic_sampling else "none",
                inverted=c.invert_sigmas,
            ),
        )

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
        *,
        per_token_timesteps: Tensor | None = None,
        variance_noise: Tensor | None = None,
        sample_ids=None,
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple[Tensor]:
        """One step; the first finds its place by `timestep` or `begin_index`, the others follow it.

        Args:
            model_output: of the sample's shape, the velocity noise minus data.
            timestep: an element of `timesteps` or a number.
            sample: `[B, ...]`, float32 or bfloat16; others are computed in float32.
            generator: one, or one per row; without `stochastic_sampling` nothing is drawn.
            return_dict: an output object, else the tuple (prev_sample,).
            per_token_timesteps: None.
            variance_noise: normals of the sample's shape in place of the generator's.
            sample_ids: as the attribute, for this call.

        Raises:
            ValueError: no schedule or one that has ended, a wrong shape, a wrong number of ids or
                generators, or `per_token_timesteps`.
        """
        if per_token_timesteps is not None:
            raise ValueError(
                f"{type(self).__name__} has one level per step, got per_token_timesteps: use "
                "FlowMatchEulerDiscreteScheduler"
            )
        new, *_ = self._advance(
            model_output, timestep, sample, generator, variance_noise, sample_ids
        )
        if not return_dict:
            return (new,)
        return output(FlowMatchEulerDiscreteSchedulerOutput, prev_sample=new)

    def _add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return FlowMatchEulerDiscreteScheduler.scale_noise(self, x0, timesteps, noise)
