"""Samplers for diffusion and autoregressive diffusion, over the kernels of `ardiff_kernels`."""

from __future__ import annotations

import importlib

_EXPORTS = {
    "sample": ("ardiff.sampling", "sample"),
    "adapted_solver": ("ardiff.step_size", "adapted_solver"),
    "solver": ("ardiff.solvers", "solver"),
    "clear_graphs": ("ardiff.graphs", "clear_graphs"),
    "load": ("ardiff.sampler", "load"),
    "ARSampler": ("ardiff.sampler", "ARSampler"),
    "AREngine": ("ardiff.engine", "AREngine"),
    "get_path": ("ardiff.paths", "get_path"),
    "StepTable": ("ardiff.table", "StepTable"),
    "RaggedTable": ("ardiff.schedule", "RaggedTable"),
    "paths": ("ardiff.paths", None),
}
__all__ = [
    "AREngine", "ARSampler", "RaggedTable", "StepTable", "adapted_solver", "clear_graphs",
    "get_path", "load", "paths", "sample", "solver",
]  # fmt: skip


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
