"""Model folders (`config.json`, `model.safetensors`): written whole or not at all."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import torch
from torch import Tensor

from .._files import replacing
from .._files.checkpoints import (
    CheckpointError,
    load_module,
    read_tensors,
    shapes_alone,
    write_safetensors,
)
from .image_model import ARModel, ModelConfig

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
_PRETRAINED = Path(__file__).parent / "pretrained"
_FULL_PRECISION = ("mean", "std")
MOST_JSON = 2**22  # bytes of a config, thousands of times what one has


def shipped_models() -> list[str]:
    """Names of the models that come with the package."""
    if not _PRETRAINED.is_dir():
        return []
    return sorted(p.name for p in _PRETRAINED.iterdir() if (p / CONFIG).is_file())


def save_model(
    model: ARModel, folder: str | Path, *, training: dict | None = None, dtype=torch.float32
) -> None:
    """Writes a model folder.

    The weights carry the model's config too, and the old `config.json` goes before they are
    replaced: whenever this is cut short, weights and config in the folder belong together.

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
    config = model.config.to_dict()
    text = json.dumps({"model": config, "training": training or {}}, indent=2)
    with replacing(folder / CONFIG) as new_config:
        new_config.write_text(text + "\n")
        with replacing(folder / WEIGHTS) as new_weights:
            metadata = {"format": "pt", "config": json.dumps(config)}
            write_safetensors(new_weights, tensors, metadata)
            Path(os.path.realpath(folder / CONFIG)).unlink(missing_ok=True)


def _short(value: object) -> str:
    """At most 200 characters of a value or message that a file has brought along."""
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _json_object(text: str | bytes, source: str) -> dict:
    if len(text) > MOST_JSON:
        raise CheckpointError(f"{source}: expected a config of at most {MOST_JSON:,} bytes")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source}: not valid JSON ({error})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{source}: expected an object, got {type(values).__name__}")
    return values


def _model_config(values: dict, source: str) -> ModelConfig:
    try:
        return ModelConfig.from_dict(values)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{source}: {_short(error)}") from error


def _read_config(folder: Path, metadata: dict[str, str]) -> ModelConfig:
    """The config that the weights carry, that in `config.json`, or both where they agree."""
    path, found = folder / CONFIG, []
    if path.is_file():
        with path.open("rb") as file:
            text = file.read(MOST_JSON + 1)
        values = _json_object(text, str(path)).get("model")
        if not isinstance(values, dict):
            raise CheckpointError(f'{path}: expected an object with a "model" object inside')
        found.append(_model_config(values, str(path)))
    if "config" in metadata:
        source = f"{folder / WEIGHTS} (config)"
        found.append(_model_config(_json_object(metadata["config"], source), source))
    if not found:
        raise CheckpointError(f"{folder} holds no {CONFIG}, and {WEIGHTS} carries no config either")
    if found[0] != found[-1]:
        raise CheckpointError(
            f"{path} is not the config that {WEIGHTS} was saved with; copy the whole folder "
            f"again, or delete {CONFIG}"
        )
    return found[0]


def _check_sizes(config: ModelConfig, tensors: dict[str, Tensor], folder: Path) -> None:
    """Refuses sizes that the weights cannot have, before a module of them is built.

    A layer holds width^2 values and more, the mean holds those of one image, and each block has
    tensors of its own: so not even the modules are more than the file pays for.
    """
    values = sum(t.numel() for t in tensors.values())
    side = math.isqrt(values)
    most = {
        "image_size": side,
        "channels": values,
        "context_width": side,
        "head_width": side,
        "context_depth": len(tensors),
        "head_depth": len(tensors),
    }
    for name, bound in most.items():
        if getattr(config, name) > bound:
            raise CheckpointError(
                f"{folder}: {name} {_short(getattr(config, name))} does not fit {WEIGHTS}, which "
                f"holds {len(tensors)} tensors of {values:,} values; it belongs to another model"
            )


def load_model(name_or_folder: str | Path, device: str | torch.device = "cpu") -> ARModel:
    """A model by the name it is shipped under, or from a folder; in float32, in eval mode, without
    gradients.

    Raises:
        CheckpointError: neither a shipped name nor a folder; a file missing or damaged; weights
            that are not those of the config.

    Example:
        >>> import ardiff
        >>> model = ardiff.load("sun-shadow")
        >>> model.config.patches, model.training
        (4, False)
    """
    shipped = shipped_models()
    folder = _PRETRAINED / name_or_folder if name_or_folder in shipped else Path(name_or_folder)
    if not folder.is_dir():
        raise CheckpointError(
            f"no model {str(name_or_folder)!r}: expected one of the shipped names "
            f"({', '.join(shipped) or 'none'}) or a folder with {CONFIG} and {WEIGHTS}"
        )
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder} holds no {WEIGHTS}; a model folder has {CONFIG} and {WEIGHTS}"
        )
    tensors, metadata = read_tensors(folder / WEIGHTS)
    config = _read_config(folder, metadata)
    _check_sizes(config, tensors, folder)
    try:
        with shapes_alone():
            model = ARModel(config)
    except ValueError as error:
        raise CheckpointError(f"{folder}: {_short(error)}") from error
    load_module(model, tensors, str(folder / WEIGHTS), torch.float32)
    return model.to(device).eval().requires_grad_(False)
