"""Checkpoint files: safetensors written whole or not at all, and read with their names, shapes and
values checked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.overrides import TorchFunctionMode

from . import replacing


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, made for another model, or not fit to be written."""


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file at `path` itself; equal tensors and metadata give equal bytes.

    `safetensors.torch.save_file` would write metadata in random order, and through a temporary file
    of its own, which a killed process leaves behind and which replaces a device.

    Raises:
        CheckpointError: NaN or infinite values; nothing is written.
        OSError: the file cannot be written.
    """
    check_finite(tensors, "the file is not written")
    content = memoryview(save({k: v.contiguous() for k, v in tensors.items()}))
    start = 8 + int.from_bytes(content[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(bytes(content[8:start]))}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(content[start:])


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raises CheckpointError for NaN or infinite values; what a meta tensor holds is not known."""
    for name, tensor in tensors.items():
        if not tensor.is_meta and not torch.isfinite(tensor).all():
            raise CheckpointError(f"{source}: {name} holds NaN or infinite values")


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


def check_memory(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuses tensors that claim more values than are stored for them, before they are copied.

    A view with stride 0, or many names for the same values, makes a copy that is larger than the
    file by any factor. Meta tensors claim nothing.

    Raises:
        CheckpointError: all tensors together are larger than the distinct storages behind them.
    """
    own = [t for t in tensors.values() if not t.is_meta]
    storages = [t.untyped_storage() for t in own]
    claimed = sum(t.nbytes for t in own)
    held = sum({s.data_ptr(): s.nbytes() for s in storages}.values())
    if claimed > held:
        raise CheckpointError(
            f"{source} claims {claimed:,} bytes of tensors, but {held:,} are stored for them; save "
            "each tensor whole (contiguous, no two names for the same values)"
        )


class _NoInitialisation(TorchFunctionMode):
    """Leaves out `torch.nn.init`: on the meta device it costs an import of all of sympy."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Modules made within have shapes but no values: see :func:`load_module`."""
    with torch.device("meta"), _NoInitialisation():
        yield


def load_module(
    module: torch.nn.Module, tensors: Mapping[str, Tensor], source: str, dtype: torch.dtype
) -> None:
    """Gives a module made in :func:`shapes_alone` copies of its tensors, in `dtype` and on the
    default device; nothing is allocated before all names and shapes have been compared.

    Raises:
        CheckpointError: as of :func:`check_tensors` and :func:`check_memory`.
    """
    check_memory(tensors, source)
    check_tensors(module, tensors, source)
    device = torch.get_default_device()
    copies = {name: t.detach().to(device, dtype, copy=True) for name, t in tensors.items()}
    module.load_state_dict(copies, assign=True)


def check_tensors(module: torch.nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
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
        check_finite({name: tensors[name]}, source)
