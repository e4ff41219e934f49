"""Model folders (`config.json`, `model.safetensors`): written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ardiff.models.ar_model import ARModel, ModelConfig

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
_PRETRAINED = Path(__file__).parent / "pretrained"
_FULL_PRECISION = ("mean", "std")


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or made for another model."""


def shipped_models() -> list[str]:
    """Names of the models that come with the package."""
    if not _PRETRAINED.is_dir():
        return []
    return sorted(p.name for p in _PRETRAINED.iterdir() if (p / CONFIG).is_file())


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file under another name, then renames it: no reader sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata)
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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


def load_tensors(module: torch.nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Copies tensors into a module's parameters and buffers, names and shapes exactly.

    Raises CheckpointError for missing or unexpected names, other shapes, and values that are not
    finite.
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
        if not torch.isfinite(tensors[name]).all():
            raise CheckpointError(f"{source}: {name} holds NaN or infinite values")
    module.load_state_dict(tensors)


def save_model(
    model: ARModel, folder: str | Path, *, training: dict | None = None, dtype=torch.float32
) -> None:
    """Writes a model folder.

    Args:
        model: the model; its weights are cast to `dtype`, mean and std stay float32.
        folder: made if need be.
        training: what made the model, kept in `config.json` for the reader.
        dtype: float32 or bfloat16.
    """
    folder = Path(folder)
    tensors = {
        name: value.detach() if name in _FULL_PRECISION else value.detach().to(dtype)
        for name, value in model.state_dict().items()
    }
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
    text = json.dumps({"model": model.config.to_dict(), "training": training or {}}, indent=2)
    temporary = folder / f".{CONFIG}.{os.getpid()}"
    temporary.write_text(text + "\n")
    os.replace(temporary, folder / CONFIG)


def _read_config(path: Path) -> ModelConfig:
    try:
        values = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
        raise CheckpointError(f'{path}: expected an object with a "model" object inside')
    try:
        return ModelConfig.from_dict(values["model"])
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def load_model(name_or_folder: str | Path, device: str | torch.device = "cpu") -> ARModel:
    """A model by the name it is shipped under, or from a folder; in float32, in eval mode, without
    gradients.

    Raises:
        CheckpointError: neither a shipped name nor a folder; a file missing or damaged; weights
            that are not those of the config.
    """
    shipped = shipped_models()
    folder = _PRETRAINED / name_or_folder if name_or_folder in shipped else Path(name_or_folder)
    if not folder.is_dir():
        raise CheckpointError(
            f"no model {str(name_or_folder)!r}: expected one of the shipped names "
            f"({', '.join(shipped) or 'none'}) or a folder with {CONFIG} and {WEIGHTS}"
        )
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise CheckpointError(
                f"{folder} holds no {file}; a model folder has {CONFIG} and {WEIGHTS}"
            )
    config = _read_config(folder / CONFIG)
    tensors, _ = read_tensors(folder / WEIGHTS)
    model = ARModel(config)
    load_tensors(model, tensors, str(folder / WEIGHTS))
    return model.to(device).eval().requires_grad_(False)
