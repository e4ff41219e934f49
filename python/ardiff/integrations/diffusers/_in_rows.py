"""Schedulers whose `step` is one row of a table, taken in turn."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from ...loop.rows import launch
from ...tables.table import StepTable
from ._common import (
    FusedScheduler,
    Placed,
    as_output,
    as_state,
    check_shapes,
    check_spacing,
    output,
    threshold,
)
from ._noise import Generators


class RowScheduler(FusedScheduler):
    """A table of one row per model call; the first step finds its place, the others follow it.

    Subclasses make the table (`_make_table`) and say what their class of diffusers has. Class
    attributes, since a configuration keeps the options of every class that it came through:

    Attributes:
        keeps_memory: whether a row reads what the row before kept.
        clips, thresholds: whether `clip_sample` and `thresholding` count.
        learns_variance: whether an output may have twice the channels, of which half are not used.
    """

    keeps_memory = clips = thresholds = learns_variance = False
    num_inference_steps: int | None = None

    def _make_table(self, prediction: str | None = None, first: int = 0) -> StepTable:
        """The table of a run that begins at row `first`, of a model of another `prediction`."""
        raise NotImplementedError

    @classmethod
    def extract_init_dict(cls, config_dict: dict, **options) -> tuple:
        """As `ConfigMixin`'s; the spacing of `TableScheduler` alone, `log_snr`, is left out."""
        if config_dict.get("timestep_spacing") == "log_snr":
            config_dict = {k: v for k, v in config_dict.items() if k != "timestep_spacing"}
        return super().extract_init_dict(config_dict, **options)

    def _config_changed(self) -> None:
        """Before the first step the levels stay as they are, and the steps change, as in diffusers;
        after it the predictions that are kept may be too few."""
        if self._step_index is not None:
            super()._config_changed()
        self._follow_config()
        self._rows = self._plain_rows = None

    def _restart(self, begin_index: int | None = None, device=None) -> None:
        super()._restart(begin_index, device)
        self._memory: Tensor | None = None
        self._plain_rows: Placed | None = None
        self._first = 0

    def _leave_out_what_is_more(self, count: int) -> None:
        """Of `trailing` timesteps diffusers makes one more, at -1, for some counts.

        Raises:
            ValueError: timesteps beyond the training's.
        """
        kept = len(check_spacing(self.timesteps.numpy(), count, self.config))
        if kept < len(self.timesteps):
            self.timesteps, self.num_inference_steps = self.timesteps[:kept], kept
            self.sigmas = torch.cat([self.sigmas[:kept], self.sigmas[-1:]])

    def _index(self, timestep: Any, device: torch.device) -> int:
        """The row of this step; the table of a run that begins at a later row is made here."""
        index = self._step_index
        if index is None:
            index = self._first = self._first_index(timestep)
            if index and self.keeps_memory:
                self._rows = Placed(self._make_table(first=index), device)
        return index

    def _check_index(self, index: int) -> None:
        count = len(self._host_timesteps)
        if index >= count:
            raise ValueError(f"all {count} steps are done: call set_timesteps first")

    def _advance(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Generators,
        variance_noise: Tensor | None,
        sample_ids: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """New state, memory and data prediction, the state in the sample's dtype.

        Raises:
            ValueError: no schedule or one that has ended, a wrong shape, or a wrong number of ids
                or generators.
        """
        if self.num_inference_steps is None:
            raise ValueError("there is no schedule yet: call set_timesteps first")
        self._rows_on(sample.device)
        index = self._index(timestep, sample.device)
        self._check_index(index)
        rows = self._rows
        learned = self.learns_variance and self.config.variance_type in (
            "learned", "learned_range",
        )  # fmt: skip
        check_shapes(model_output, sample, learned)
        if model_output.shape != sample.shape:
            model_output = model_output[:, : sample.shape[1]]
        draws = rows.table.draws and variance_noise is None
        key, stream = self._address(index, generator, sample_ids, sample, draws)
        x, out = as_state(sample), as_output(model_output)
        noise = None if variance_noise is None else as_state(variance_noise, (torch.float32,))
        memory, clamp = self._memory_of(x, out, rows.table), None
        if self.thresholds and self.config.thresholding:
            rows, out = self._plain(x, out, index)
        elif self.clips and self.config.clip_sample:
            clamp = self.config.clip_sample_range
        row = rows.row[index]
        new, kept, x0 = launch(
            "diffusion",
            x,
            out,
            memory,
            rows.coef,
            row,
            row,
            key,
            stream,
            noise=noise,
            x0_clamp=clamp,
        )
        if self.keeps_memory:
            self._memory = kept
        self._step_index = index + 1
        return (new if new.dtype == sample.dtype else new.to(sample.dtype)), kept, x0

    def _memory_of(self, x: Tensor, out: Tensor, table: StepTable) -> Tensor:
        """What the row reads as memory: before the first, nothing that has a weight."""
        if self._memory is not None:
            return self._memory
        wide = (len(x), table.memories * x.shape[1], *x.shape[2:])
        return x.new_empty(wide) if table.memories > 1 else x

    def _plain(self, x: Tensor, out: Tensor, index: int) -> tuple[Placed, Tensor]:
        """The thresholded data prediction, as the output of a model that predicts data."""
        table = self._rows.table
        p_x, p_o = (float(table.column(name)[index]) for name in ("p_x", "p_o"))
        ratio, largest = self.config.dynamic_thresholding_ratio, self.config.sample_max_value
        if self._plain_rows is None or self._plain_rows.device != x.device:
            self._plain_rows = Placed(self._make_table("sample", self._first), x.device)
        return self._plain_rows, threshold(p_x * x.float() + p_o * out.float(), ratio, largest)


def new_sample(new: Tensor, return_dict: bool) -> SchedulerOutput | tuple[Tensor]:
    """What a `step` returns that gives the new sample alone."""
    return output(SchedulerOutput, prev_sample=new) if return_dict else (new,)
