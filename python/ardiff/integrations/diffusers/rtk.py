"""Reverse transition kernels as diffusers schedulers: `RTKULDScheduler` and `RTKMALAScheduler`."""

from __future__ import annotations

import numpy as np
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config

from ...solvers._rtk.adjusted import langevin_tau
from ...tables.paths import Path
from ._common import MODULE
from ._rtk import RTKScheduler
from ._rtk_tables import Stages, mala_table, uld_table


class RTKULDScheduler(RTKScheduler, SchedulerMixin, ConfigMixin):
    """Each stage an ancestral step and `inner` steps of underdamped Langevin (`rtk-uld`).

    `timesteps` names a level once for each model call at it, so that a pipeline's loop makes the
    right calls. `set_timesteps(n)` makes n calls.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas,
            rescale_betas_zero_snr: the schedule the model was trained on, as `DDPMScheduler`'s.
        prediction_type: epsilon, sample, v_prediction, or flow_prediction: then the schedule is
            rectified flow's, and the betas have no say.
        timestep_spacing, steps_offset: where the stages end: log_snr, evenly in log(sigma / alpha),
            which needs far fewer stages; or linspace, leading or trailing, as in `DDPMScheduler`,
            where flow_prediction has the sigmas of `FlowMatchEulerDiscreteScheduler`.
        flow_shift, use_dynamic_shifting, time_shift_type, shift_terminal: of flow_prediction, as in
            `FlowMatchEulerDiscreteScheduler` (there `shift`).
        clip_sample, clip_sample_range: bound the last data prediction; nothing else is clipped,
            which would change the law.
        thresholding: refused.
        inner: steps per stage.
        gamma, tau: friction and step size in units of the stage's width.

    Raises:
        ValueError: an option out of range.
    """

    __module__ = MODULE

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray | list[float] | None = None,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "log_snr",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        flow_shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        shift_terminal: float | None = None,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        inner: int = 2,
        gamma: float = 2.0,
        tau: float = 0.4,
    ) -> None:
        self._set_up()

    def _stages(self, path: Path, prediction: str, grid: list, inner: list) -> Stages:
        return uld_table(path, prediction, grid, inner, self.config.gamma, self.config.tau)


class RTKMALAScheduler(RTKScheduler, SchedulerMixin, ConfigMixin):
    """Each stage an ancestral step and `inner` Metropolis-adjusted Langevin steps (`rtk-mala`).

    Acceptance needs the score alone (the trapezoidal rule, see
    :mod:`ardiff.solvers._rtk.adjusted`); with a learned score it is approximate. `acceptance` is
    the share of proposals accepted.

    Args:
        inner: proposals a stage.
        tau: step size in units of the squared width of the stage. None: 0.4 for samples of up to 40
            elements and 0.4 (40 / d)^(1/2) for d, which the first step says.
        others: as of :class:`RTKULDScheduler`.

    Raises:
        ValueError: an option out of range.
    """

    __module__ = MODULE

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray | list[float] | None = None,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "log_snr",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        flow_shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        shift_terminal: float | None = None,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        inner: int = 2,
        tau: float | None = None,
    ) -> None:
        self._set_up()

    @property
    def _depends_on_dim(self) -> bool:
        return self.config.tau is None

    def _step_of(self, dim: int | None) -> float:
        return langevin_tau(dim)

    def _stages(self, path: Path, prediction: str, grid: list, inner: list) -> Stages:
        tau = langevin_tau(self._dim) if self._depends_on_dim else self.config.tau
        return mala_table(path, prediction, grid, inner, tau)
