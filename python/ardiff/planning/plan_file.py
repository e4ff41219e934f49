"""Plan files: what `ardiff sample --config` takes, as JSON. Their names end in ``.plan.json``.

    {
      "format": "ardiff plan", "version": 1, "model": "sun-shadow", "path": "vp-cosine",
      "solver": "rtk-harmonic", "steps": 16, "options": {"grid": "karras", "rho": 7.0},
      "lookahead": null, "guidance": null
    }

`options` are those of the solver and of its time grid. What they leave out is as
:func:`ardiff.solver` has it, and not as the model's config has: the grids of a plan are those that
were measured. `model` is null where the plan was made for no model. Neither seed nor number of
images is a part of a plan.
"""

from __future__ import annotations

import inspect
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from reprlib import repr as short
from typing import Any

from .._files import write_json
from .._files.versioned import Kind, check_names, read_versioned
from ..loop.lookahead import MODES
from ..solvers import check_options, solver
from ..tables.paths import GRIDS, PATHS

KIND = Kind("plan file", "ardiff plan", 1, limit=2**20, writer="ardiff plan --out")
GRID_NUMBERS = ("ratio_max", "ratio_min", "rho", "shift")
# what ardiff.solver has where an option of the grid is not given: over a model's config
_OVER_CONFIG = {
    name: parameter.default
    for name, parameter in inspect.signature(solver).parameters.items()
    if name in ("grid", *GRID_NUMBERS)
}


@dataclass(frozen=True)
class SamplePlan:
    """The choices of a sampler that a plan makes.

    Attributes:
        model: a shipped name or a folder; None for a plan that was made for no model.
        path: of the model.
        solver, steps, options: as :func:`ardiff.solver` takes them; steps are for each patch.
        lookahead: ``auto``, a number of rows, or the name of a mode, which is that mode with
            ``auto``; None runs row by row.
        guidance: scale of classifier-free guidance, or None.

    Raises:
        ValueError: an unknown path, solver, grid or lookahead, an option that the solver does not
            take, or a number out of range.
        TypeError: an option that is neither a number nor a name.
    """

    model: str | None
    path: str
    solver: str
    steps: int
    options: dict[str, float | str] = field(default_factory=dict)
    lookahead: int | str | None = None
    guidance: float | None = None

    def __post_init__(self) -> None:
        if self.model is not None and (not isinstance(self.model, str) or not self.model):
            raise ValueError(f"model must be a name, a folder or null, got {short(self.model)}")
        if self.path not in PATHS:
            raise ValueError(f"unknown path {short(self.path)}; known paths: {', '.join(PATHS)}")
        if not isinstance(self.solver, str):
            raise ValueError(f"solver must be a name, got {short(self.solver)}")
        if not _whole(self.steps) or self.steps < 1:
            raise ValueError(f"steps must be an integer of 1 or more, got {short(self.steps)}")
        if not isinstance(self.options, dict):
            raise ValueError(f"options must be an object, got {short(self.options)}")
        for name, value in self.options.items():
            if isinstance(value, bool) or isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"option {name} must be a finite number or a name, got {value}")
        options = dict(self.options)
        grid = options.pop("grid", None)
        if grid is not None and grid not in GRIDS:
            raise ValueError(f"unknown time grid {short(grid)}; known grids: {', '.join(GRIDS)}")
        for name in GRID_NUMBERS:
            value = options.pop(name, None)
            if value is not None and (isinstance(value, str) or not 0 < value < math.inf):
                raise ValueError(f"option {name} must be positive, got {short(value)}")
        check_options(self.solver, options)
        if isinstance(self.lookahead, str) and self.lookahead not in ("auto", *MODES):
            raise ValueError(
                f"unknown lookahead {short(self.lookahead)}; known: auto, {', '.join(MODES)}, or a "
                "number of rows"
            )
        if not isinstance(self.lookahead, (str, type(None))) and not (
            _whole(self.lookahead) and self.lookahead >= 1
        ):
            raise ValueError(f"lookahead must be 1 or more rows, got {short(self.lookahead)}")
        if self.guidance is not None and (
            isinstance(self.guidance, (bool, str)) or not math.isfinite(self.guidance)
        ):
            raise ValueError(f"guidance must be a finite number, got {short(self.guidance)}")

    def sampler_options(self) -> dict[str, Any]:
        """The arguments of :class:`ardiff.ARSampler` but the model."""
        found = {"solver": self.solver, "steps": self.steps, "guidance": self.guidance}
        if self.lookahead in MODES:
            found |= {"lookahead": "auto", "mode": self.lookahead}
        else:
            found["lookahead"] = self.lookahead
        return {**found, **_OVER_CONFIG, **self.options}

    def check_path(self, path: str) -> None:
        """ValueError where a model's path is not the plan's."""
        if path != self.path:
            raise ValueError(
                f"the plan is for path {self.path}, the model has {path}: make a plan with "
                "ardiff plan --model"
            )


def write_plan(path: str | os.PathLike, plan: SamplePlan) -> None:
    """Writes a plan file, whole or not at all.

    Raises:
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> from ardiff.planning.plan_file import SamplePlan, read_plan, write_plan
        >>> plan = SamplePlan("sun-shadow", "vp-cosine", "ddim", 8, {"ratio_min": 0.05})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_plan(f"{folder}/mine.plan.json", plan)
        ...     read_plan(f"{folder}/mine.plan.json") == plan
        True
    """
    write_json(Path(path), {"format": KIND.format, "version": KIND.version, **asdict(plan)})


def read_plan(path: str | os.PathLike) -> SamplePlan:
    """The plan in a file.

    Raises:
        OSError: a file that is not there or cannot be read.
        ValueError: not a plan file, one of a newer version, or one that is damaged or asks for what
            there is not; the message names the file.
    """
    value = read_versioned(path, KIND)
    names = tuple(SamplePlan.__dataclass_fields__)
    try:
        check_names("the file", value, ("format", "version", *names))
        return SamplePlan(**{name: value[name] for name in names})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
