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
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from reprlib import repr as short
from typing import Any

from .._files import write_json
from .._files.versioned import Kind, check_names, number, read_versioned
from ..loop.lookahead import MODES
from ..solvers import check_options, solver
from ..tables.paths import GRIDS, PATHS
from .checks import check_calls

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
            take or that is neither a number nor a name, or a number out of range.
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
        check_calls("steps", self.steps)
        if not isinstance(self.options, dict):
            raise ValueError(f"options must be an object, got {short(self.options)}")
        _check_options(self.solver, self.options)
        _check_lookahead(self.lookahead)
        if self.guidance is not None:
            number("guidance", self.guidance)

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


def _check_options(name: str, options: dict[str, Any]) -> None:
    """Raises for what neither the time grid nor solver `name` takes."""
    own = dict(options)
    if "grid" in own and (grid := own.pop("grid")) not in GRIDS:
        raise ValueError(f"unknown time grid {short(grid)}; known grids: {', '.join(GRIDS)}")
    for option in GRID_NUMBERS:
        if option in own and number(f"option {option}", own.pop(option)) <= 0:
            raise ValueError(f"option {option} must be positive, got {short(options[option])}")
    for option, value in own.items():
        if not isinstance(value, str):
            number(f"option {option}", value)
    check_options(name, own)


def _check_lookahead(lookahead: Any) -> None:
    if isinstance(lookahead, str) and lookahead not in ("auto", *MODES):
        raise ValueError(
            f"unknown lookahead {short(lookahead)}; known: auto, {', '.join(MODES)}, or a number "
            "of rows"
        )
    if not isinstance(lookahead, (str, type(None))):
        check_calls("lookahead", lookahead)
