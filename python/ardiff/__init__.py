"""Samplers for diffusion and autoregressive diffusion, over the kernels of `ardiff_kernels`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from . import _moved

if TYPE_CHECKING:
    from ardiff_kernels import __version__ as __version__

    from .ar.engine import AREngine
    from .ar.sampler import ARSampler, load
    from .integrations.systems import accelerate, restore
    from .loop.adapt_tau import adapted_solver
    from .loop.cuda_graphs import clear_graphs
    from .loop.divergence import NonfiniteWarning
    from .loop.stats import AcceptanceWarning
    from .planning.calibrate import calibrate
    from .planning.calibration import Calibration
    from .sampling import sample
    from .solvers import default_solver, solver
    from .tables import paths
    from .tables.paths import get_path
    from .tables.ragged import RaggedTable
    from .tables.table import StepTable
    from .training.learn_table import learn_table

_EXPORTS = {
    "sample": ("ardiff.sampling", "sample"),
    "accelerate": ("ardiff.integrations.systems", "accelerate"),
    "restore": ("ardiff.integrations.systems", "restore"),
    "AcceptanceWarning": ("ardiff.loop.stats", "AcceptanceWarning"),
    "NonfiniteWarning": ("ardiff.loop.divergence", "NonfiniteWarning"),
    "adapted_solver": ("ardiff.loop.adapt_tau", "adapted_solver"),
    "default_solver": ("ardiff.solvers", "default_solver"),
    "solver": ("ardiff.solvers", "solver"),
    "clear_graphs": ("ardiff.loop.cuda_graphs", "clear_graphs"),
    "load": ("ardiff.ar.sampler", "load"),
    "ARSampler": ("ardiff.ar.sampler", "ARSampler"),
    "AREngine": ("ardiff.ar.engine", "AREngine"),
    "get_path": ("ardiff.tables.paths", "get_path"),
    "StepTable": ("ardiff.tables.table", "StepTable"),
    "RaggedTable": ("ardiff.tables.ragged", "RaggedTable"),
    "calibrate": ("ardiff.planning.calibrate", "calibrate"),
    "Calibration": ("ardiff.planning.calibration", "Calibration"),
    "learn_table": ("ardiff.training.learn_table", "learn_table"),
    "paths": ("ardiff.tables.paths", None),
    "__version__": ("ardiff_kernels", "__version__"),
}
__all__ = [
    "AREngine", "ARSampler", "AcceptanceWarning", "Calibration", "NonfiniteWarning",
    "RaggedTable", "StepTable", "accelerate", "adapted_solver", "calibrate", "clear_graphs",
    "default_solver", "get_path", "learn_table", "load", "paths", "restore", "sample", "solver",
]  # fmt: skip

_moved.install()


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'ardiff' has no attribute {name!r}")
    module_name, attribute = _EXPORTS[name]
    module = importlib.import_module(module_name)
    value = module if attribute is None else getattr(module, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
