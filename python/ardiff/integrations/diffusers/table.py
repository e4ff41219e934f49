"""`TableScheduler`: any solver of ardiff as a diffusers scheduler."""

from __future__ import annotations

from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ...loop.rows import Rows
from ...solvers import check_options, solver_options, table_function
from ...solvers._over_levels import over_levels
from ...tables.table import StepTable
from ._calls import CallScheduler, PlacedProgram
from ._common import MODULE


class Steps(NamedTuple):
    """A table, the levels at which its steps or stages begin, and the solver that made it."""

    table: StepTable
    grid: tuple[float, ...]
    solver: str


def default_solver(calls: int, flow: bool) -> str:
    """The solver of `TableScheduler()` at a number of calls (measured by benchmarks.diffusers_law).

    Discrete schedules end before the noise is pure. Deterministic solvers keep that error of the
    start, stochastic ones forget it; a flow has none.
    """
    if calls < 16:
        return "unipc"
    return "rtk-hybrid" if flow else "rtk-harmonic"


class TableScheduler(CallScheduler, SchedulerMixin, ConfigMixin):
    """The solver named, one of :data:`ardiff.solvers.SOLVERS`, ending with a data prediction.

    `timesteps` names the level of each model call in turn, so that a pipeline's loop makes the
    right calls of solvers that make several per step. `set_timesteps(n)` makes n calls or, where
    the solver's steps do not divide them, the most below n.

    Args:
        solver: its name, such as ``rtk-hybrid`` or ``heun``; None for that of
            :func:`default_solver`.
        solver_options: its own options by name, as :func:`ardiff.solver` takes them, but for
            `stages`.
        table: in place of a solver the name of a file of :meth:`ardiff.StepTable.save`, such as a
            learned table. It has levels of its own, and runs from the first to the last of them:
            `timestep_spacing` and shifts have no say, and `set_timesteps(n)` needs n of at least
            its calls. It is read at each `set_timesteps`, and moved to this schedule.
        others: as of :class:`RTKULDScheduler`.

    Raises:
        ValueError, TypeError: an unknown solver, an option that is out of range or not taken, or a
            table beside a solver.
        OSError: `table` is not there.
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
        solver: str | None = None,
        solver_options: dict[str, Any] | None = None,
        table: str | None = None,
    ) -> None:
        self._set_up()

    @property
    def _options(self) -> dict[str, Any]:
        options = dict(self.config.solver_options or {})
        return {"dim": self._dim, **options} if self._depends_on_dim else options

    @property
    def _depends_on_dim(self) -> bool:
        return self.config.solver is not None and "dim" in solver_options(self.config.solver)

    def _check_options(self) -> None:
        name, options = self.config.solver, self._options
        if self.config.table is not None:
            if name is not None or options:
                raise ValueError("pass a solver with its options or a table, not both")
            StepTable.load(self.config.table)
            return
        if name is None:
            if options:
                raise ValueError("solver_options need their solver: pass solver too")
            return
        if "stages" in check_options(name, options):
            raise ValueError("TableScheduler takes no stages: set_timesteps says how many")
        if options.get("accept") == "energy":
            raise ValueError(
                f"solver {name} with accept='energy' compares energies, which a scheduler is not "
                "given: use accept='trapezoid' or 'simpson', or ardiff.sample with energy_fn"
            )

    def _made_of(self, calls: int) -> Steps:
        if self.config.table is not None:
            return self._loaded(calls)
        asked: list[list[float]] = []

        def levels(count: int) -> np.ndarray:
            asked.append(self._grid(count))
            return np.array(asked[-1], np.float64)

        name = self.config.solver or default_solver(calls, self._flow)

        def make() -> Steps:
            options = check_options(name, self._options)
            table = table_function(name)(
                self._path, self._prediction, levels, calls, denoise_last=True, **options
            )
            return Steps(table, tuple(map(float, asked[-1])), name)

        return self._cached(("calls", calls, self._mu), make)

    def _loaded(self, calls: int) -> Steps:
        name = self.config.table
        table = StepTable.load(name).on(self._path, self._prediction)
        if calls < table.calls:
            raise ValueError(
                f"the table {name} makes {table.calls} calls: ask for as many steps, got {calls}"
            )
        return Steps(table, tuple(table.level.tolist()), table.solver)

    def _made_on(self, levels: list[float], scale: float) -> Steps:
        if self.config.table is not None:
            raise ValueError(
                f"the table {self.config.table} has levels of its own: pass num_inference_steps"
            )
        grid = [level for level, _ in groupby(levels)]
        if not grid or any(b >= a for a, b in zip(grid, grid[1:], strict=False)):
            raise ValueError(f"timesteps must be in descending order, got {levels}")
        name = self.config.solver or default_solver(len(levels), self._flow)
        made = self._made_at(tuple(level / scale for level in grid), name)
        if len(levels) > len(grid) and made.table.calls != len(levels):
            raise ValueError(
                f"timesteps must be the {len(grid)} levels of {name}, or one for "
                f"each of its {made.table.calls} calls at them, got {len(levels)}"
            )
        return made

    def _made_at(self, grid: tuple[float, ...], name: str) -> Steps:
        def make() -> Steps:
            table = over_levels(
                name, path=self._path, prediction=self._prediction, levels=grid,
                denoise_last=True, **self._options,
            )  # fmt: skip
            return Steps(table, grid, name)

        return self._cached((name, *grid), make)

    def _first_used(self, index: int) -> int:
        """The next call that is the last at its level, from which a step begins; 0 is one too."""
        if index == 0:
            return 0
        levels, grid = self._made.table.level[list(self._calls)], self._made.grid
        last = [*(levels[1:] != levels[:-1]), True]
        return next(i for i in range(index, len(levels)) if last[i] and levels[i] in grid)

    def _begin(self, index: int, z: Tensor, key: Tensor, stream: Tensor) -> Rows:
        program = self._rows.program
        if index and self.config.table is not None:
            raise ValueError(
                f"the table {self.config.table} cannot begin at call {index}: its weights are "
                "those of a run from the first; use a solver for image-to-image"
            )
        if index:
            made = self._made
            level = made.table.level[self._calls[index]]
            rest = self._made_at(tuple(b for b in made.grid if b <= level), made.solver).table
            if rest.calls != len(self._calls) - index:
                raise ValueError(
                    f"{made.solver} cannot begin at call {index} of {len(self._calls)}: "
                    f"from level {level:g} on it makes {rest.calls} calls"
                )
            program, self._decided_by = PlacedProgram(rest, z.device).program, rest
        return Rows(program, z, key=key, stream=stream, decisions=self._decisions)
