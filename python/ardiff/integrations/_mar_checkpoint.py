"""The weights of a MAR checkpoint, read without running code."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from .._files.checkpoints import CheckpointError
from ..heads.base import Head
from ..heads.loading import load_head

_WEIGHTS = ("model_ema", "model")


def load_tensors(path: str | Path, which: str | None = None) -> dict[str, Tensor]:
    """The state dict in a MAR checkpoint (`.pth`), on the CPU. No code in the file is run.

    Args:
        which: ``model_ema`` or ``model``; None: the first of them that the file holds.

    Raises:
        CheckpointError: a file that is missing, damaged, holds more than tensors and plain values,
            or has no such state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a MAR checkpoint (.pth)")
    if which is not None and which not in _WEIGHTS:
        raise ValueError(f"which must be None, {' or '.join(_WEIGHTS)}, got {which!r}")
    try:
        # MAR saves its command line, a Namespace, beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            mapped = zipfile.is_zipfile(path)
            if mapped:
                _check_archive(path)
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0]
        raise CheckpointError(
            f"{path} holds more than tensors and was not loaded, since that could run code: "
            f"{reason}; ask for a checkpoint of weights alone"
        ) from None
    except Exception as error:  # bytes that are no pickle fail in any way
        raise CheckpointError(f"{path}: not a whole PyTorch checkpoint ({error})") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: expected a dict, got {type(found).__name__}")
    names = _WEIGHTS if which is None else (which,)
    for name in names:
        tensors = found.get(name)
        if isinstance(tensors, dict) and all(isinstance(t, Tensor) for t in tensors.values()):
            return dict(tensors)
    shown = ", ".join(map(str, list(found)[:5])) + (", ..." if len(found) > 5 else "")
    raise CheckpointError(
        f"{path}: expected a state dict under {' or '.join(names)}, got {shown or 'nothing'}"
    )


def _check_archive(path: Path) -> None:
    """torch compresses nothing: entries that unpack to more than the file are no checkpoint."""
    with zipfile.ZipFile(path) as archive:
        claimed = sum(entry.file_size for entry in archive.infolist())
    if claimed > path.stat().st_size:
        raise CheckpointError(
            f"{path}: not a whole PyTorch checkpoint (its entries claim {claimed:,} bytes, "
            f"the file has {path.stat().st_size:,})"
        )


def load_checkpoint(path: str | Path, which: str | None = None) -> Head:
    """The diffusion head of a MAR checkpoint, in eval mode; see :func:`load_tensors`.

    Raises:
        CheckpointError: as of `load_tensors`, no head of MAR's names in it, or tensors that claim
            more values than the file stores.
    """
    return load_head(load_tensors(path, which))
