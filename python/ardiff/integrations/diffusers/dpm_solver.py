"""`FusedDPMSolverMultistepScheduler`: diffusers' `DPMSolverMultistepScheduler`, one op per step."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from ...tables.diffusers_schedules import ALGORITHMS, dpmpp_table
from ...tables.table import StepTable
from ._common import MODULE
from ._flow import flow_noise, flow_sigmas, without_end
from ._in_rows import RowScheduler, new_sample
from ._noise import Generators

OTHER_SIGMAS = (
    "use_karras_sigmas", "use_lu_lambdas", "use_exponential_sigmas", "use_beta_sigmas",
    "use_flow_sigmas",
)  # fmt: skip


class FusedDPMSolverMultistepScheduler(RowScheduler, DPMSolverMultistepScheduler):
    """`DPMSolverMultistepScheduler` with the same arguments and, on the same noise, samples within
    1e-5, for `algorithm_type` ``dpmsolver++`` (order 1 to 3) and ``sde-dpmsolver++`` (1 and 2).

    Its list `model_outputs` stays empty: the last predictions are kept in the op's memory.
    Thresholding takes further PyTorch ops. Where diffusers' counts of steps fail, these do not: a
    62nd of 61 ``trailing`` steps at timestep -1 is left out, of equal timesteps (Karras sigmas of a
    cosine schedule) a run that is given the value begins at the first, and `add_noise` is right
    before `set_timesteps` too.

    Raises:
        ValueError: another algorithm, or order 3 of the stochastic one.
    """

    __module__ = MODULE
    keeps_memory = thresholds = learns_variance = True

    @functools.wraps(DPMSolverMultistepScheduler.__init__)
    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self._follow_config()

    def _check_config(self) -> None:
        algorithm, order = self.config.algorithm_type, self.config.solver_order
        if algorithm not in ALGORITHMS:
            raise ValueError(
                f"{type(self).__name__} has algorithm_type {' and '.join(ALGORITHMS)}, got "
                f"{algorithm!r}; use DPMSolverMultistepScheduler for it"
            )
        if algorithm == "sde-dpmsolver++" and order > 2:
            raise ValueError(
                f"{type(self).__name__} has solver_order 1 and 2 of {algorithm}, got {order}"
            )

    def _add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        if self.num_inference_steps is not None:
            return DPMSolverMultistepScheduler.add_noise(self, x0, noise, timesteps)
        # before set_timesteps, as in training, diffusers' sigmas ascend and its timesteps descend
        if self.config.use_flow_sigmas:
            return flow_noise(x0, noise, timesteps, self.config.num_train_timesteps)
        return DDPMScheduler.add_noise(self, x0, noise, timesteps.long())

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        mu: float | None = None,
        timesteps: list[int] | None = None,
        *,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """See `DPMSolverMultistepScheduler.set_timesteps`; the steps' table is made here.

        Args:
            mu: with `use_dynamic_shifting` the shift of flow sigmas; else it has no say, as in
                `FlowMatchEulerDiscreteScheduler`.
            sigmas: in place of a number of steps: with `use_flow_sigmas` sigmas that are shifted as
                `FlowMatchEulerDiscreteScheduler` shifts them; else sigma / alpha. Timesteps are
                then not rounded to integers.

        Raises:
            ValueError: more than one of number, timesteps and sigmas, or none; or timesteps beyond
                the training's.
        """
        self._follow_config()
        c, given = self.config, None if sigmas is None else without_end(sigmas)
        if given is not None:
            if timesteps is not None or num_inference_steps not in (None, len(given)):
                raise ValueError("pass one of num_inference_steps, timesteps and sigmas")
            if c.prediction_type == "flow_prediction" and not c.use_flow_sigmas:
                raise ValueError("sigmas of a flow model need use_flow_sigmas=True")
            num_inference_steps = len(given)
        if mu is not None and c.use_dynamic_shifting and c.time_shift_type == "linear":
            c.flow_shift = float(mu)  # where diffusers keeps exp(mu)
        exponential = c.use_dynamic_shifting and c.time_shift_type == "exponential"
        super().set_timesteps(
            num_inference_steps, mu=mu if exponential else None, timesteps=timesteps
        )
        if given is not None:
            self._set_sigmas(given, mu)
        elif timesteps is None and not any(c[name] for name in OTHER_SIGMAS):
            self._leave_out_what_is_more(num_inference_steps)
        self._restart(device=device)

    def _set_sigmas(self, given: list[float], mu: float | None) -> None:
        c, last = self.config, float(self.sigmas[-1])
        if c.use_flow_sigmas:
            given, last = flow_sigmas(c, None, given, mu), 0.0
            levels = np.float32(given) * np.float32(c.num_train_timesteps)
        else:
            bars = self.alphas_cumprod.numpy()
            known = np.log(((1 - bars) / bars) ** 0.5)
            levels = self._sigma_to_t(np.array(given), known).astype(np.float32)
        self.sigmas = torch.tensor([*given, last], dtype=torch.float32)
        self.timesteps = torch.from_numpy(levels)

    def _make_table(self, prediction: str | None = None, first: int = 0) -> StepTable:
        c = self.config
        prediction = prediction or c.prediction_type
        sigmas, timesteps = self.sigmas.numpy(), tuple(self._host_timesteps)
        make = functools.partial(
            dpmpp_table,
            sigmas,
            timesteps,
            prediction="flow" if prediction == "flow_prediction" else prediction,
            algorithm=c.algorithm_type,
            order=c.solver_order,
            solver=c.solver_type,
            lower_order_final=c.lower_order_final,
            euler_at_final=c.euler_at_final,
            final_sigmas_type=c.final_sigmas_type,
            flow=c.use_flow_sigmas,
            first=first,
        )
        return self._cached((sigmas.tobytes(), timesteps, prediction, first), make)

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
        *,
        sample_ids=None,
    ) -> SchedulerOutput | tuple[Tensor]:
        """One step; the first finds its place by `timestep` or `begin_index`, the others follow it.

        Args:
            model_output: of the sample's shape, or twice its channels with learned variances,
                which are not used.
            timestep: an element of `timesteps` or a number.
            sample: `[B, ...]`, float32 or bfloat16; others are computed in float32.
            generator: one, or one per row; the deterministic algorithm draws nothing.
            variance_noise: normals of the sample's shape in place of the generator's.
            return_dict: an output object, else the tuple (prev_sample,).
            sample_ids: as the attribute, for this call.

        Raises:
            ValueError: no schedule or one that has ended, a wrong shape, or a wrong number of ids
                or generators.
        """
        new, *_ = self._advance(
            model_output, timestep, sample, generator, variance_noise, sample_ids
        )
        return new_sample(new, return_dict)
