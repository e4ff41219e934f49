"""`FusedUniPCMultistepScheduler`: diffusers' `UniPCMultistepScheduler`, one op per step."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from diffusers import DDPMScheduler, UniPCMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from ...solvers import unipc
from ...solvers._exponential import predict_and_correct
from ...solvers._multistep import prediction_columns
from ...tables.diffusers_schedules import (
    DPM_PREDICTIONS,
    alpha_and_sigma,
    check_lengths,
    columns_of_data,
    log_snr_at,
)
from ...tables.paths import Transition
from ...tables.table import StepTable, TableBuilder
from ._common import MODULE
from ._flow import flow_noise
from ._in_rows import RowScheduler, new_sample
from ._noise import Generators

OTHER_SIGMAS = (
    "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas",
)  # fmt: skip


def unipc_table(
    sigmas: np.ndarray,
    timesteps: Sequence[float],
    *,
    prediction: str,
    order: int = 2,
    solver: str = "bh2",
    lower_order_final: bool = True,
    flow: bool = False,
    uncorrected: Sequence[int] = (),
    first: int = 0,
) -> StepTable:
    """:mod:`ardiff.solvers.unipc` over diffusers' sigmas.

    Args:
        sigmas: `[N + 1]`, sigma / alpha at the calls and at the end; with `flow` sigma = 1 - alpha.
        timesteps: `[N]`, what the model is given at the calls.
        prediction: epsilon, sample, v_prediction or flow.
        order, solver, lower_order_final: as that module's, where `solver` is `variant`.
        uncorrected: the steps after which no corrector is applied.
        first: the row a run begins at; the rows from there on have as many predictions to use.

    Raises:
        ValueError: lengths that do not fit, an epsilon model at alpha = 0, or a last step of order
            2 or 3 that ends at sigma = 0 or has no length.
    """
    sigma = check_lengths("unipc_table", sigmas, timesteps)
    count, past = len(timesteps), []
    builder = TableBuilder("discrete", prediction, f"unipc-{order}")
    options = {"order": order, "variant": solver, "lower_order_final": lower_order_final}
    predict = functools.partial(unipc.predict, **options)
    for i, (a, b) in enumerate(zip(sigma[:-1], sigma[1:], strict=True)):
        if i == first:
            past.clear()
        h = log_snr_at(b, flow) - log_snr_at(a, flow)
        begin, end = alpha_and_sigma(a, flow), alpha_and_sigma(b, flow)
        past.insert(0, Transition(*begin, *end, h, np.nan, np.nan, np.nan))
        if unipc.order_of(past, count - i, order, lower_order_final) > 1 and not 0 < h < np.inf:
            raise ValueError(
                f"step {i} of order {order} goes from sigma {a:g} to {b:g}, but needs an end that "
                "is smaller and not 0: use lower_order_final=True"
            )
        corrected = i - 1 not in uncorrected
        correct = functools.partial(unipc.correct, **options) if corrected else lambda *a: ()
        columns = prediction_columns(*predict_and_correct(past, count - i, predict, correct)[:2])
        p_x, p_o = columns_of_data(prediction, a, flow)
        builder.add(
            "diffusion",
            float(timesteps[i]),
            p_x=p_x,
            p_o=p_o,
            **columns,
            m_0=1.0,
            s_m=float(order > 1),
            t_2=float(order > 2),
        )
    return builder.finish(init_scale=1.0)


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
