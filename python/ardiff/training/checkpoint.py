"""The checkpoint of a training run: one safetensors file, checked whole before use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .._files.checkpoints import (
    CheckpointError,
    check_finite,
    check_tensors,
    read_tensors,
    write_tensors,
)

MOMENTS = ("exp_avg", "exp_avg_sq")
PARTS = ("model", "average")
EXTENDED = "extended_from"


@dataclass(frozen=True)
class TrainState:
    """A run after `step` steps.

    Attributes:
        step: steps done.
        skipped: those of them that the optimizer did not see, their gradient not being finite.
        model, average: state dicts of the weights and of their average.
        optimizer: AdamW's state by parameter index: `step`, `exp_avg`, `exp_avg_sq`; empty before
            the first step that it saw.
        generator: state of the random generator, uint8.
        extended_from: the steps at which the run had ended before it was given more.
    """

    step: int
    skipped: int
    model: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[int, dict[str, Tensor]]
    generator: Tensor
    extended_from: tuple[int, ...] = ()


def write_state(path: Path, state: TrainState, identity: dict) -> None:
    """Writes a checkpoint; `identity` is what a run that resumes it must share.

    Raises CheckpointError, and leaves the file as it was, where the state is not finite.
    """
    if state.extended_from:
        identity = identity | {EXTENDED: list(state.extended_from)}
    tensors = {"generator": state.generator}
    for part in PARTS:
        tensors |= {f"{part}.{name}": value for name, value in getattr(state, part).items()}
    for index, entry in state.optimizer.items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in entry.items()}
    counts = {"step": str(state.step), "skipped": str(state.skipped)}
    write_tensors(path, tensors, {**counts, "config": json.dumps(identity)})


def read_state(path: Path, model: nn.Module, identity: dict, steps: int) -> TrainState:
    """Reads a checkpoint and checks all of it.

    Args:
        path: the file.
        model: a model of the same shapes; it is not written to.
        identity: what the checkpoint must have been written with.
        steps: the steps of the whole run; if they are more than those of a run that has ended,
            that run is extended.

    Raises:
        CheckpointError: a file that is missing, damaged, of another run, or holds anything that
            `write_state` would not have written for this model.
    """
    tensors, metadata = read_tensors(path)
    if not {"step", "config"} <= metadata.keys() or "generator" not in tensors:
        raise CheckpointError(
            f"{path} is no training checkpoint: it has no step, config or generator"
        )
    saved = _read_identity(path, metadata["config"])
    extended = saved.pop(EXTENDED, [])
    if saved.get("steps") != steps and metadata["step"] == str(saved.get("steps")):
        if isinstance(extended, list) and int(metadata["step"]) < steps:
            extended = [*extended, saved["steps"]]
            saved["steps"] = steps
    _check_identity(path, saved, identity)
    step = _read_count(path, "step", metadata["step"], steps)
    # A checkpoint from before such steps were counted has none.
    skipped = _read_count(path, "skipped", metadata.get("skipped", "0"), step)
    _check_extended(path, extended, step)
    generator = _checked_generator(path, tensors.pop("generator"))
    weights = {}
    for part in PARTS:
        weights[part] = _take(tensors, f"{part}.")
        check_tensors(model, weights[part], f"{path} ({part})")
    optimizer = _read_optimizer(
        f"{path} (optimizer)",
        _take(tensors, "optimizer."),
        list(model.parameters()),
        step - skipped,
    )
    if tensors:
        raise CheckpointError(f"{path} has {min(tensors)}, which no training checkpoint has")
    parts = (weights["model"], weights["average"], optimizer, generator)
    return TrainState(step, skipped, *parts, tuple(extended))


def _take(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors.pop(name) for name in names}


def _read_identity(path: Path, text: str) -> dict:
    try:
        saved = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its config is not valid JSON ({error})") from error
    if not isinstance(saved, dict):
        raise CheckpointError(f"{path}: its config must be an object, got {type(saved).__name__}")
    return saved


def _check_identity(path: Path, saved: dict, own: dict) -> None:
    differing = sorted(k for k in own.keys() | saved.keys() if own.get(k) != saved.get(k))
    if differing:
        said = "; ".join(f"{k} was {saved.get(k)!r}, now {own.get(k)!r}" for k in differing)
        more = "; once it has ended, more steps extend it" if "steps" in differing else ""
        raise CheckpointError(
            f"{path} is of another run: {said}. Resume with the same settings{more}"
        )


def _check_extended(path: Path, steps: object, step: int) -> None:
    valid = isinstance(steps, list) and all(type(entry) is int for entry in steps)
    if not valid or sorted({0, *steps}) != [0, *steps] or max(steps, default=0) > step:
        raise CheckpointError(
            f"{path}: its {EXTENDED} must be rising numbers of at most {step} steps, got "
            f"{str(steps)[:40]}"
        )


def _read_count(path: Path, name: str, text: str, most: int) -> int:
    try:
        count = int(text)
    except ValueError:
        raise CheckpointError(f"{path}: its {name} must be an integer, got {text[:40]!r}") from None
    if not 0 <= count <= most:
        raise CheckpointError(f"{path}: its {name} must be in [0, {most}], got {text[:40]}")
    return count


def _checked_generator(path: Path, state: Tensor) -> Tensor:
    own = torch.Generator().get_state()
    if (state.dtype, state.shape) != (own.dtype, own.shape):
        raise CheckpointError(
            f"{path}: generator must be {str(own.dtype)[6:]} {list(own.shape)}, got "
            f"{str(state.dtype)[6:]} {list(state.shape)}"
        )
    try:
        torch.Generator().set_state(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: generator holds no valid state ({error})") from error
    return state


def _read_optimizer(
    source: str, tensors: dict[str, Tensor], parameters: Sequence[Tensor], step: int
) -> dict[int, dict[str, Tensor]]:
    shapes = {}
    if step > 0:
        for index, parameter in enumerate(parameters):
            shapes[f"{index}.step"] = []
            shapes |= {f"{index}.{name}": list(parameter.shape) for name in MOMENTS}
    for word, names in (
        ("lacks", shapes.keys() - tensors.keys()),
        ("has unexpected", tensors.keys() - shapes.keys()),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(f"{source} {word} {min(names)}{more} at step {step}")
    found: dict[int, dict[str, Tensor]] = {}
    for name, shape in shapes.items():
        value = tensors[name]
        if list(value.shape) != shape or value.dtype != torch.float32:
            raise CheckpointError(
                f"{source}: {name} must be float32 {shape}, got {str(value.dtype)[6:]} "
                f"{list(value.shape)}"
            )
        check_finite({name: value}, source)
        index, key = name.split(".")
        if key == "step" and value.item() != step:
            raise CheckpointError(f"{source}: {name} must be {step}, got {value.item():g}")
        if key == "exp_avg_sq" and value.numel() and value.min() < 0:
            raise CheckpointError(f"{source}: {name} must not be negative")
        found.setdefault(int(index), {})[key] = value
    return found
