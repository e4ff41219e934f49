"""Import paths of earlier versions that pages and examples have shown; each is the new module."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "ardiff.adapt_tau": "ardiff.loop.adapt_tau",
    "ardiff.denoise": "ardiff.heads.token",
    "ardiff.engine": "ardiff.ar.engine",
    "ardiff.files": "ardiff._files",
    "ardiff.graphs": "ardiff.loop.cuda_graphs",
    "ardiff.image_grid": "ardiff.commands._image_grid",
    "ardiff.models.encoder": "ardiff.ar.encoder",
    "ardiff.models.head": "ardiff.heads.mar",
    "ardiff.models.head_loading": "ardiff.heads.loading",
    "ardiff.models.patch_model": "ardiff.ar.patch_model",
    "ardiff.models.transformers_context": "ardiff.ar.stock_context",
    "ardiff.paths": "ardiff.tables.paths",
    "ardiff.run": "ardiff.loop.run",
    "ardiff.sampler": "ardiff.ar.sampler",
    "ardiff.schedule": "ardiff.tables.ragged",
    "ardiff.step_size": "ardiff.loop.adapt_tau",
    "ardiff.table": "ardiff.tables.table",
}


class _Moved(MetaPathFinder, Loader):
    """Finds an old path and answers with the module itself, so that there is only one of it."""

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(MOVED[spec.name])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """The module has been executed under its own name; the import machinery has given it the
        spec of the old one, and it gets its own back."""
        module.__spec__ = module.__spec__.loader_state


def install() -> None:
    """Makes the old paths importable."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
