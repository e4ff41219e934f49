"""Schedulers whose `step` is one model call of a table with several calls per step or stage.

Every call's rows are executed by :class:`ardiff.loop.rows.Rows`, which holds what they carry:
memory, velocity and the origin of a proposal. The DDPM and DPM-Solver schedulers have one row per
call, in any order, and need little of it. Their `step` is a single :func:`ardiff.loop.rows.launch`,
by which `Rows` runs a row too: a step of theirs takes 20 to 30 us, and what `Rows` keeps track of
would be a tenth of that.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from ...loop.rows import Decision, Program, Rows
from ...loop.stats import collect, warn_of_acceptance
from ...tables.diffusers_schedules import DiscretePath
from ...tables.paths import FlowPath
from ...tables.plan import uniform
from ...tables.table import StepTable
from ._common import (
    FusedScheduler,
    as_output,
    as_state,
    check_shapes,
    check_spacing,
    in_float32,
    output,
)
from ._flow import flow_noise, flow_shift, flow_sigmas, log_snr_sigmas, without_end
from ._noise import Generators

CALLED = ("RTKULDScheduler", "RTKMALAScheduler", "TableScheduler")
LOG_SNR = "log_snr"
SPACINGS = (LOG_SNR, "linspace", "leading", "trailing")
PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow_prediction")
SMALLEST_BAR = 2.0**-24  # at most, in place of alpha^2 = 0, as in DPMSolverMultistepScheduler


def log_snr_timesteps(path: DiscretePath, count: int) -> list[int]:
    """`count` timesteps, evenly in log(sigma / alpha) as far as they are integers, descending."""
    last = len(path)
    ratios = np.geomspace(path.ratio_min, path.ratio_max, count)
    inside = np.clip(ratios, path.ratio_min, path.ratio_max)
    place = np.arange(count)
    steps = np.round(path.level(inside)) - place
    steps = np.minimum(np.maximum.accumulate(steps), last - count) + place
    return [int(t) for t in steps[::-1]]


def _version(t: Tensor) -> int | None:
    """How often `t` was written; inference tensors do not count it."""
    return None if t.is_inference() else t._version


class PlacedProgram:
    """A table on a device, taken apart for :class:`~ardiff.loop.rows.Rows`."""

    def __init__(self, table: StepTable, device: torch.device) -> None:
        self.table, self.device = table, device
        self.program = Program.of(uniform(table.to(device)))


class CallScheduler(FusedScheduler):
    """A table executed call by call; subclasses say which.

    They make what a run needs, an object with the `table`, from a number of calls (`_made_of`) or
    from levels (`_made_on`), and begin it at a call (`_begin`).
    """

    _decisions: Sequence[Decision] = ()
    _dim: int | None = None  # elements of a sample, of the last one

    def _check_options(self) -> None:
        """Raises for options out of range."""
        raise NotImplementedError

    def _made_of(self, calls: int) -> Any:
        raise NotImplementedError

    def _made_on(self, levels: list[float], scale: float) -> Any:
        raise NotImplementedError

    def _begin(self, index: int, z: Tensor, key: Tensor, stream: Tensor) -> Rows:
        raise NotImplementedError

    @property
    def _depends_on_dim(self) -> bool:
        """Whether the table depends on the number of elements of a sample, by its step size."""
        return False

    def _step_of(self, dim: int | None) -> Any:
        """What of the table depends on the number of elements: equal for equal tables."""
        return dim

    def _first_used(self, index: int) -> int:
        """The first call from `index` on whose output a run that begins there can use."""
        return index

    def _set_up(self) -> None:
        # a configuration of theirs names its class, and so tells its spacing from diffusers'
        self.register_to_config(_class_name=type(self).__name__)
        self._follow_config()

    @classmethod
    def extract_init_dict(cls, config_dict: dict, **options) -> tuple:
        """As `ConfigMixin`'s; `timestep_spacing` of another kind of scheduler is left out.

        Pipelines name the spacing that suits the scheduler they were saved with, and on it these
        solvers do no better than that scheduler (measured in docs/integrations/diffusers.md).
        """
        if config_dict.get("_class_name") not in CALLED:
            config_dict = {k: v for k, v in config_dict.items() if k != "timestep_spacing"}
        return super().extract_init_dict(config_dict, **options)

    def _check_config(self) -> None:
        """Makes all that follows from the configuration alone."""
        c = self.config
        if c.thresholding:
            raise ValueError(f"{type(self).__name__} has no thresholding; pass thresholding=False")
        for name, given, known in (
            ("prediction_type", c.prediction_type, PREDICTIONS),
            ("timestep_spacing", c.timestep_spacing, SPACINGS),
            ("time_shift_type", c.time_shift_type, ("exponential", "linear")),
        ):
            if given not in known:
                raise ValueError(f"unknown {name} {given!r}; known: {', '.join(known)}")
        if not (c.shift_terminal is None or 0 < c.shift_terminal < 1):
            raise ValueError(f"shift_terminal must lie in (0, 1), got {c.shift_terminal}")
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
        self._mu: float | None = None
        self._shift = c.flow_shift
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        steps = np.arange(c.num_train_timesteps)[::-1].copy()
        self.timesteps = torch.from_numpy(steps.astype(np.float32) if self._flow else steps)
        self._made: Any = None
        self._check_options()

    @property
    def _prediction(self) -> str:
        return self.config.prediction_type.removesuffix("_prediction" if self._flow else "")

    def _grid(self, count: int) -> list[float]:
        """Levels of `count` stage ends, noisiest first."""
        c, last = self.config, self.config.num_train_timesteps
        if self._flow and count == 1:
            return [1.0]
        if self._flow and c.timestep_spacing == LOG_SNR:
            return log_snr_sigmas(count, self._shift, c.shift_terminal)
        if self._flow:
            return flow_sigmas(c, count, None, self._mu)
        if count > last:
            raise ValueError(f"{count} stages need as many training timesteps, there are {last}")
        if count == 1:
            return [last - 1]
        if c.timestep_spacing == LOG_SNR:
            return log_snr_timesteps(self._path, count)
        self._schedule.set_timesteps(count)
        return check_spacing(self._schedule.timesteps.numpy(), count, c).tolist()

    def _levels_of(self, sigmas: Sequence[float]) -> list[float]:
        """The path's levels at given sigmas, which are sigma / alpha but for a flow model."""
        if self._flow:
            return flow_sigmas(self.config, None, sigmas, self._mu)
        ratio = np.array(without_end(sigmas))
        ends = self._path.ratio_min, self._path.ratio_max
        # published lists are rounded, and lie beyond the ends by as much
        if not np.all((ratio > 0.99 * ends[0]) & (ratio < 1.01 * ends[1])):
            raise ValueError(
                f"sigmas must be sigma / alpha between {ends[0]:g} and {ends[1]:g}, those of the "
                f"training timesteps, got {ratio.tolist()}"
            )
        return self._path.level(ratio.clip(*ends)).tolist()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        *,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Choose the levels; `timesteps` then holds one element for each model call.

        Args:
            num_inference_steps: the number of model calls. An RTK scheduler makes all of them, in
                as many stages of `inner` steps as fit; `TableScheduler` as many as its solver can.
            device: of `timesteps` and the table; the samples' device by default.
            timesteps: in place of a number: the levels at the ends of the stages or steps, or one
                element for each call, as `timesteps` has them.
            sigmas: in place of both: the ends of the stages or steps as diffusers' schedulers take
                them, with or without a last 0. With flow_prediction they are shifted as
                `FlowMatchEulerDiscreteScheduler` shifts them; else they are sigma / alpha.
            mu: with flow_prediction and `use_dynamic_shifting`, the shift of this run's sigmas.

        Raises:
            ValueError: more than one of these or none, levels that are not descending, `mu` without
                a flow model or missing, or what the solver refuses.
        """
        if self._decisions and self._step_index == len(self._calls) and self._z.is_cuda:
            self._warn_of_acceptance()
        self._follow_config()
        count = None if num_inference_steps is None else int(num_inference_steps)
        if sigmas is not None and count == len(without_end(sigmas)):
            count = None  # some pipelines pass both
        if sum(given is not None for given in (count, timesteps, sigmas)) != 1:
            raise ValueError("pass one of num_inference_steps, timesteps and sigmas")
        if count is not None and count < 1:
            raise ValueError(f"num_inference_steps must be 1 or more, got {num_inference_steps}")
        if self._flow:
            self._shift = flow_shift(self.config, mu) if timesteps is None else 1.0
        elif mu is not None:
            raise ValueError(
                "mu shifts the sigmas of a flow model, but prediction_type is "
                f"{self.config.prediction_type!r}"
            )
        self._mu = mu
        scale = self.config.num_train_timesteps if self._flow else 1
        if count is not None:
            self._asked = count, None, scale
        elif timesteps is not None:
            self._asked = 0, [float(t) for t in timesteps], scale
        else:
            self._asked = 0, self._levels_of(sigmas), 1
        self._made = self._make_asked()
        table = self._made.table
        self._calls = tuple(np.flatnonzero(table.calls_model).tolist())
        levels = table.level[list(self._calls)]
        if self._flow:
            self.sigmas = torch.from_numpy(np.append(levels, 0.0).astype(np.float32))
        levels = levels * scale
        whole = not self._flow and bool(np.all(levels == np.round(levels)))
        self.timesteps = torch.from_numpy(levels.astype(np.int64 if whole else np.float32))
        self.num_inference_steps = len(levels)
        self._restart(device=device)

    def _make_asked(self) -> Any:
        calls, levels, scale = self._asked
        return self._made_of(calls) if levels is None else self._made_on(levels, scale)

    def _know(self, sample: Tensor) -> None:
        """Makes the table anew for samples of another size than those it is for."""
        dim = math.prod(sample.shape[1:])
        if dim != self._dim and self._depends_on_dim:
            known, self._dim = self._dim, dim
            if self._step_of(dim) != self._step_of(known):
                self.__dict__.pop("_made_tables", None)
                self._made, self._rows = self._make_asked(), None

    def _warn_of_acceptance(self) -> None:
        """Of a finished run: at its last step, or where that would wait for a device, later."""
        stats = collect(self._decided_by or self._made.table, 0, 0.0, self._decisions)
        warn_of_acceptance(stats, self._made.table.solver, stacklevel=4)

    def _restart(self, begin_index: int | None = None, device=None) -> None:
        super()._restart(begin_index, device)
        self._run: Rows | None = None
        self._first_use, self._halfway = 0, False
        self._z: Tensor | None = None  # what prev_sample was before it was rounded
        self._given: Tensor | None = None
        self._given_version: int | None = None
        self._decisions = []
        self._decided_by: StepTable | None = None  # where it is not the whole table

    @property
    def _draws(self) -> bool:
        """Whether a step of the run may use noise."""
        return self._made.table.draws

    def _make_table(self) -> StepTable:
        return self._made.table

    def _place(self, table: StepTable, device: torch.device) -> PlacedProgram:
        # what is kept holds the table, so that no other table can have its id
        return self._cached((id(table), device), lambda: PlacedProgram(table, device))

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

        A run of an RTK scheduler that begins within a stage draws the stage's origin from the
        sample by the forward process, which leaves the law as it is. One of `TableScheduler` begins
        with the last call at its level, and leaves the sample as it is until then.

        Args:
            model_output: of the sample's shape, or twice its channels, of which the first half is
                taken (models with learned variances).
            timestep: an element of `timesteps` or a number.
            sample: `[B, ...]`; the chain's state is float32 between steps whatever its dtype. What
                is written into the last prev_sample counts, but not into half precision of
                `torch.inference_mode`, which does not tell.
            generator: one, or one per row.
            return_dict: an output object, else the tuple (prev_sample,).
            sample_ids: as the attribute, for this call.

        Raises:
            ValueError: no schedule or one that has ended, a wrong shape, or a wrong number of ids
                or generators.
        """
        if self.num_inference_steps is None:
            raise ValueError("there is no schedule yet: call set_timesteps first")
        first, calls = self._step_index is None, len(self._calls)
        if first:
            self._know(sample)
        self._rows_on(sample.device)
        index = self._first_index(timestep) if first else self._step_index
        if index >= calls:
            raise ValueError(f"all {calls} steps are done: call set_timesteps first")
        check_shapes(model_output, sample, True)
        if model_output.shape != sample.shape:
            model_output = model_output[:, : sample.shape[1]]
        out = as_output(model_output)
        kept = sample is self._given and _version(sample) == self._given_version
        z = self._z if kept else as_state(sample, (torch.float32,))
        key, stream = self._address(index, generator, sample_ids, sample, self._draws)
        if first:
            self._first_use = self._first_used(index)
        self._step_index = index + 1
        if index < self._first_use:
            return output(SchedulerOutput, prev_sample=sample) if return_dict else (sample,)
        run = self._run
        if run is None:
            run = self._run = self._begin(index, z, key, stream)
        state = run.state
        if not (kept or self._halfway):
            state.x = z
        run.key, run.stream = key, stream
        # The pipeline owns these tensors and may write them before the next step: what is kept of
        # them is copied.
        state.theirs = [t for t in (sample, model_output) if t is z or t is out]
        run.advance((out,))
        last = index + 1 == calls
        self._halfway = state.has_midpoints and not last and run.at_midpoint
        z = run.query() if self._halfway else state.x
        if last and self.config.clip_sample:
            z = z.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        new = z if z.dtype == sample.dtype else z.to(sample.dtype)
        self._z, self._given, self._given_version = z, new, _version(new)
        if last and z.device.type == "cpu":
            self._warn_of_acceptance()
        return output(SchedulerOutput, prev_sample=new) if return_dict else (new,)

    @property
    def acceptance(self) -> float | None:
        """Share of proposals accepted since set_timesteps, or None; it waits for the device."""
        if not self._decisions:
            return None
        return float(torch.stack([d.accepted for d in self._decisions]).float().mean())

    def scale_model_input(self, sample: Tensor, timestep=None) -> Tensor:
        """The sample itself."""
        return sample

    def _add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        if not self._flow:
            return DDPMScheduler.add_noise(self, x0, noise, timesteps)
        return flow_noise(x0, noise, timesteps, self.config.num_train_timesteps)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What a v_prediction model should return at the timesteps `[B]`; a flow model's is noise
        minus sample."""
        if self._flow:
            return noise - sample
        velocity = functools.partial(DDPMScheduler.get_velocity, self)
        return in_float32(velocity, sample, noise, timesteps)

    def __len__(self) -> int:
        return self.config.num_train_timesteps
