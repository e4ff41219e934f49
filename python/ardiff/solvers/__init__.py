"""Solvers: each module of this package makes a StepTable and reads like the paper it cites.

A solver is a file: ``dpmpp_2m.py`` is found as ``dpmpp-2m``. It defines
``table(path, prediction, levels, steps, *, denoise_last, <its own options>) -> StepTable``, where
``levels(n)`` returns the time grid of n levels, noisiest first. Where ``levels.named`` is true the
grid was asked for by its name, and a solver may place levels between its ends otherwise.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Sequence

import numpy as np

from ..tables.paths import Path, check_prediction, get_path
from ..tables.table import StepTable
from ._default import default_solver
from ._levels import check_steps, grid_key, levels_of
from ._tableau import from_tableau, phi

__all__ = [
    "SOLVERS", "check_options", "default_solver", "from_tableau", "phi", "solver",
    "solver_options", "table_function",
]  # fmt: skip

_MODULES = {
    module.name.replace("_", "-"): module.name
    for module in pkgutil.iter_modules(__path__)
    if not module.name.startswith("_")
}
SOLVERS = tuple(sorted(_MODULES))


def table_function(name: str) -> Callable[..., StepTable]:
    """The function ``table`` of a solver's module; ValueError for an unknown name."""
    if name == "unipc-2":
        raise ValueError("unknown solver 'unipc-2': it is 'unipc' now, whose order is 2 by default")
    if name not in _MODULES:
        raise ValueError(f"unknown solver {name!r}; known solvers: {', '.join(SOLVERS)}")
    return importlib.import_module(f"{__name__}.{_MODULES[name]}").table


def solver_options(name: str) -> tuple[str, ...]:
    """The options of solver `name` beyond those that all solvers take.

    Raises:
        ValueError: for an unknown name, listing the known ones.
    """
    parameters = inspect.signature(table_function(name)).parameters.values()
    own = (p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
    return tuple(option for option in own if option != "denoise_last")


def default_tau(name: str, options: dict) -> float:
    """The `tau` of solver `name` where `options` leave it at its default.

    Raises:
        ValueError: for an unknown name, or a solver without tau.
    """
    table = table_function(name)
    if "tau" not in solver_options(name):
        raise ValueError(f"solver {name} has no tau to adapt")
    found = inspect.signature(table).parameters["tau"].default
    if found is not None:
        return found
    rule = sys.modules[table.__module__].default_tau
    given = {key: options.get(key) for key in inspect.signature(rule).parameters}
    return rule(**{key: value for key, value in given.items() if value is not None})


def check_options(name: str, options: dict) -> dict:
    """The options that are not None, which stands for the default.

    Raises:
        ValueError, TypeError: an unknown name, an option that the solver does not take, or one that
            is neither a number nor a name.
    """
    own = solver_options(name)
    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        if key not in own:
            known = ", ".join(own) or "none of its own"
            raise ValueError(f"solver {name} does not take the option {key!r}; it takes: {known}")
        if not isinstance(options[key], (int, float, str, np.number)):
            kind = type(options[key]).__name__
            raise TypeError(f"{key} must be a number or a name, got {kind}")
    return given


def solver(
    name: str,
    *,
    path: str | Path,
    prediction: str,
    steps: int,
    grid: str | Sequence[float] | np.ndarray | None = None,
    ratio_max: float = 40.0,
    ratio_min: float = 0.002,
    rho: float | None = None,
    shift: float = 1.0,
    denoise_last: bool = True,
    **options,
) -> StepTable:
    """The coefficient table of a solver.

    Args:
        name: one of :data:`SOLVERS`.
        path: a name from :data:`ardiff.tables.paths.PATHS`, or a Path.
        prediction: what the model returns, one of :data:`ardiff.tables.paths.PREDICTIONS`.
        steps: upper bound on the model calls; ``table.calls`` says how many there are.
        grid: one of :data:`ardiff.tables.paths.GRIDS`, such as ``log-snr``, ``karras`` or
            ``ays-sdxl``, or the levels themselves, decreasing. docs/solvers.md lists them. None is
            ``log-snr``, but for ``learned``, which has levels of its own.
        ratio_max, ratio_min, rho, shift: of a named grid, its ends, its exponent and the shift of
            its levels; see :func:`ardiff.tables.paths.time_grid`.
        denoise_last: end with a data prediction, a step to level 0.
        options: the solver's own, such as `eta`, `stages` or `tau`; the docstring of its module
            ``ardiff.solvers.<name>`` has them. None means the default. `dim`, the elements of a
            sample, on which the default `tau` of some depends, is filled in by
            :func:`ardiff.sample`.

    Raises:
        ValueError: an unknown name, an option that the solver does not take (it is named), too few
            steps, a grid that the path cannot have, a `shift` beside given levels, or a score or
            epsilon model at alpha = 0.

    Warns:
        UserWarning: no stage of ``rtk-hybrid``, ``rtk-harmonic`` or ``rtk-harmonic-mala`` ends in
            its window, so that it makes no inner step.

    Example:
        >>> import ardiff
        >>> table = ardiff.solver("rtk-uld", path="flow", prediction="flow", steps=12, stages=4)
        >>> table.calls, table.op[0]
        (9, 'uld')
    """
    given = check_options(name, options)
    steps, key = check_steps(steps), grid_key(grid, ratio_max, ratio_min, rho, shift)
    options_key = tuple(sorted(given.items()))
    return _build(
        name, get_path(path), check_prediction(prediction), steps, key, bool(denoise_last),
        options_key,
    )  # fmt: skip


@functools.lru_cache(maxsize=64)  # one of 1,000 steps takes 0.3 MB
def _build(name, path, prediction, steps, key, denoise_last, options) -> StepTable:
    make = table_function(name)
    own = getattr(sys.modules[make.__module__], "OWN_LEVELS", False)
    levels = levels_of(name, path, steps, key, own)
    return make(path, prediction, levels, steps, denoise_last=denoise_last, **dict(options))
