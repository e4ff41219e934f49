"""`FusedUniPCMultistepScheduler`: diffusers' `UniPCMultistepScheduler`, one op per step."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from diffusers import DDPMScheduler, UniPCMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from ...tables.diffusers_schedules import DPM_PREDICTIONS
from ...tables.diffusers_steps import unipc_table
from ...tables.table import StepTable
from ._common import MODULE
from ._flow import flow_noise
from ._in_rows import RowScheduler, new_sample
from ._noise import Generators

OTHER_SIGMAS = (
    "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas",
)  # fmt: skip


class FusedUniPCMultistepScheduler(RowScheduler, UniPCMultistepScheduler):
    """`UniPCMultistepScheduler` with the same arguments and samples within 1e-5, for order 1 to 3.

    Its lists `model_outputs` and `last_sample` stay empty: the last predictions are kept in the
    op's memory. So what a pipeline writes into the sample between steps counts, where diffusers'
    corrector begins again at the sample it kept. Thresholding takes further PyTorch ops.

    Raises:
        ValueError: `predict_x0=False`, `solver_p`, a higher order, or an unknown `prediction_type`.
    """

    __module__ = MODULE
    keeps_memory = thresholds = True

    @functools.wraps(UniPCMultistepScheduler.__init__)
    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self._follow_config()

    def _check_config(self) -> None:
        c, name = self.config, type(self).__name__
        if not c.predict_x0 or c.solver_p is not None:
            raise ValueError(
                f"{name} has predict_x0=True and no solver_p, got predict_x0={c.predict_x0} and "
                f"solver_p={c.solver_p}: use UniPCMultistepScheduler"
            )
        if c.solver_order not in (1, 2, 3):
            raise ValueError(
                f"{name} has solver_order 1, 2 and 3, got {c.solver_order}: use "
                "UniPCMultistepScheduler"
            )
        if c.prediction_type.removesuffix("_prediction") not in (*DPM_PREDICTIONS, "v"):
            raise ValueError(
                f"{name} has prediction_type epsilon, sample, v_prediction and flow_prediction, "
                f"got {c.prediction_type!r}"
            )

    def _add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        if self.num_inference_steps is not None:
            return UniPCMultistepScheduler.add_noise(self, x0, noise, timesteps)
        # before set_timesteps, as in training, diffusers' sigmas ascend and its timesteps descend
        if self.config.use_flow_sigmas:
            return flow_noise(x0, noise, timesteps, self.config.num_train_timesteps)
        return DDPMScheduler.add_noise(self, x0, noise, timesteps.long())

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """See `UniPCMultistepScheduler.set_timesteps`; the steps' table is made here.

        Raises:
            ValueError: neither a number of steps nor sigmas, what diffusers refuses, timesteps
                beyond the training's, or a last step of order 2 or 3 to sigma = 0.
        """
        if num_inference_steps is None and sigmas is None:
            raise ValueError("pass num_inference_steps or sigmas")
        self._follow_config()
        given = None if sigmas is None else np.array(sigmas, np.float64)
        super().set_timesteps(num_inference_steps, sigmas=given, mu=mu)
        if not any(self.config[name] for name in OTHER_SIGMAS):
            self._leave_out_what_is_more(num_inference_steps)
        self._restart(device=device)

    def _make_table(self, prediction: str | None = None, first: int = 0) -> StepTable:
        c = self.config
        prediction = prediction or c.prediction_type
        sigmas, timesteps = self.sigmas.numpy(), tuple(self._host_timesteps)
        make = functools.partial(
            unipc_table,
            sigmas,
            timesteps,
            prediction="flow" if prediction == "flow_prediction" else prediction,
            order=c.solver_order,
            solver=c.solver_type,
            lower_order_final=c.lower_order_final,
            flow=c.use_flow_sigmas,
            uncorrected=tuple(c.disable_corrector),
            first=first,
        )
        return self._cached((sigmas.tobytes(), timesteps, prediction, first), make)

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
        """One step; the first finds its place by `timestep` or `begin_index`, the others follow it.

        Args:
            model_output: of the sample's shape.
            timestep: an element of `timesteps` or a number.
            sample: `[B, ...]`, float32 or bfloat16; others are computed in float32.
            generator: not used, nothing is drawn.
            return_dict: an output object, else the tuple (prev_sample,).
            sample_ids: not used.

        Raises:
            ValueError: no schedule or one that has ended, or a wrong shape.
        """
        new, *_ = self._advance(model_output, timestep, sample, generator, None, sample_ids)
        return new_sample(new, return_dict)
