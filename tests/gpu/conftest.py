"""Tests below this folder need a GPU: marked `gpu`, skipped with the reason where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

_FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _FOLDER in Path(item.fspath).parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                reason = f"torch {torch.__version__} sees no CUDA or ROCm device"
                item.add_marker(pytest.mark.skip(reason=reason))
