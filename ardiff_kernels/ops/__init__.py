"""The ops, each a folder: schema, checks and docstring; its reference; its Triton kernels.

Folders are discovered, so a new op edits nothing here.
"""

from __future__ import annotations

import importlib
import pkgutil

NAMES = tuple(m.name for m in pkgutil.iter_modules(__path__) if m.ispkg)

for _op in NAMES:
    _module = importlib.import_module(f"{__name__}.{_op}")
    globals()[_op] = getattr(_module, _op)
    globals()[f"{_op}_"] = getattr(_module, f"{_op}_")

__all__ = [*NAMES, *(f"{name}_" for name in NAMES)]
