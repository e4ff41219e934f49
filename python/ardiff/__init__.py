"""Samplers for diffusion and autoregressive diffusion, over the kernels of `ardiff_kernels`."""

from __future__ import annotations

import importlib

from . import _moved

_EXPORTS = {
    "sample": ("ardiff.sampling", "sample"),
    "adapted_solver": ("ardiff.adapt_tau", "adapted_solver"),
    "default_solver": ("ardiff.solvers", "default_solver"),
    "solver": ("ardiff.solvers", "solver"),
    "clear_graphs": ("ardiff.loop.cuda_graphs", "clear_graphs"),
    "load": ("ardiff.ar.sampler", "load"),
    "ARSampler": ("ardiff.ar.sampler", "ARSampler"),
    "AREngine": ("ardiff.ar.engine", "AREngine"),
    "get_path": ("ardiff.tables.paths", "get_path"),
    "StepTable": ("ardiff.tables.table", "StepTable"),
    "RaggedTable": ("ardiff.tables.ragged", "RaggedTable"),
    "paths": ("ardiff.tables.paths", None),
}
__all__ = [
    "AREngine", "ARSampler", "RaggedTable", "StepTable", "adapted_solver", "clear_graphs",
    "default_solver", "get_path", "load", "paths", "sample", "solver",
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
