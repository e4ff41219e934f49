"""Checkpoint files: safetensors written whole or not at all, and read with their names, shapes and
values checked."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ._files import replacing


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or made for another model."""


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file that everybody may read, at `path` itself."""
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata)
    path.chmod(0o644)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file under another name, then renames it: no reader sees half of it."""
    with replacing(path) as temporary:
        write_safetensors(temporary, tensors, metadata)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; CheckpointError if it is missing or damaged."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a safetensors checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({error}); it may be truncated, copy it again"
        ) from error


def check_tensors(module: torch.nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Whether tensors are a module's parameters and buffers, names and shapes exactly.

    Raises CheckpointError for missing or unexpected names, other shapes, and values that are no
    floating-point numbers or not finite (of a meta tensor that is not known).
    """
    own = module.state_dict()
    for word, names in (
        ("lacks", own.keys() - tensors.keys()),
        ("has", tensors.keys() - own.keys()),
    ):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            end = "" if word == "lacks" else ", which this model does not have"
            raise CheckpointError(
                f"{source} {word} {shown}{end}; it belongs to another model or config"
            )
    for name, target in own.items():
        if tensors[name].shape != target.shape:
            raise CheckpointError(
                f"{source}: {name} must have shape {list(target.shape)} by the config, "
                f"got {list(tensors[name].shape)}"
            )
        if not tensors[name].is_floating_point():
            raise CheckpointError(
                f"{source}: {name} must be floating-point, got {str(tensors[name].dtype)[6:]}"
            )
        if not tensors[name].is_meta and not torch.isfinite(tensors[name]).all():
            raise CheckpointError(f"{source}: {name} holds NaN or infinite values")
