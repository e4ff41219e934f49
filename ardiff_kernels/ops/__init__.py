"""The ops, each a folder: schema, checks and docstring; its reference; its Triton kernels.

Folders are discovered, so a new op edits nothing here. An op may have an in-place form `<op>_`.
"""

from __future__ import annotations

import importlib
import pkgutil

NAMES = tuple(
    m.name for m in pkgutil.iter_modules(__path__) if m.ispkg and not m.name.startswith("_")
)

__all__ = []
for _op in NAMES:
    _module = importlib.import_module(f"{__name__}.{_op}")
    _forms = [name for name in (_op, f"{_op}_") if hasattr(_module, name)]
    globals().update({name: getattr(_module, name) for name in _forms})
    __all__ += _forms
