"""Heads from the tensors of published checkpoints: each form is asked for its marks."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Mapping

from torch import Tensor

from .._files.checkpoints import CheckpointError, check_memory, load_module, shapes_alone
from .base import Head


@functools.cache
def forms() -> dict[str, type[Head]]:
    """Every form of a head: the subclass of `Head` with `marks` that a module of this package
    defines, by the module's name."""
    package = importlib.import_module(__package__)
    found = {}
    for module in pkgutil.iter_modules(package.__path__):
        members = vars(importlib.import_module(f"{__package__}.{module.name}")).values()
        for each in members:
            own = inspect.isclass(each) and each.__module__.endswith(f".{module.name}")
            if own and issubclass(each, Head) and hasattr(each, "marks"):
                found[module.name] = each
    return found


def load_head(tensors: Mapping[str, Tensor], prefix: str | None = None, **options) -> Head:
    """A head with the tensors of a checkpoint of any of the :func:`forms`: MAR (NextStep-1, NOVA),
    VibeVoice, Pocket-TTS, ...

    Args:
        tensors: a state dict; of a whole model too, whose other tensors are left alone.
        prefix: of the head's names, such as `diffloss.net.`; None finds it.
        options: of the head's class (eps, flow_map, ...), where no tensor tells them.

    Returns:
        `DiffusionHead`, `VibeVoiceHead`, `PocketHead` or another, in the tensors' dtype, in eval
        mode, without gradients.

    Raises:
        CheckpointError: no head or several, tensors missing, unexpected or of wrong shapes.

    Example:
        >>> from ardiff.heads.loading import load_head
        >>> from ardiff.heads.mar import DiffusionHead
        >>> trained = DiffusionHead(dim=4, context=16, width=32, depth=2)
        >>> checkpoint = {f"diffloss.net.{name}": t for name, t in trained.state_dict().items()}
        >>> type(load_head(checkpoint)).__name__
        'DiffusionHead'
    """
    kind, prefix = _find(tensors, prefix)
    form = forms()[kind]
    own = {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
    named = f"the {kind} head{f' at {prefix}' if prefix else ''}"
    check_memory(own, named)
    try:
        with shapes_alone():
            head = form.from_tensors(own, **options)
    except KeyError as error:
        raise CheckpointError(f"{named} lacks {error.args[0]}; it is not whole") from None
    except (ValueError, IndexError, RuntimeError) as error:
        raise CheckpointError(f"{named} has shapes that no such head has: {error}") from error
    load_module(head, own, named, own[form.marks.input].dtype)
    return head.eval().requires_grad_(False)


def _find(tensors: Mapping[str, Tensor], prefix: str | None) -> tuple[str, str]:
    """The form of the one head that there is, and the prefix of its names."""
    found = []
    for kind, form in forms().items():
        for name in tensors:
            start = name.removesuffix(form.marks.own)
            if name.endswith(form.marks.own) and (not start or start.endswith(".")):
                if start + form.marks.input in tensors and prefix in (None, start):
                    found.append((kind, start))
    if len(found) == 1:
        return found[0]
    at = "" if prefix is None else f" at prefix {prefix!r}"
    if not found:
        *most, last = (form.marks.listed for form in forms().values())
        raise CheckpointError(
            f"no diffusion head{at}: expected the names of {', '.join(most)} or {last}"
        )
    choices = ", ".join(sorted(start or "''" for _, start in found))
    raise CheckpointError(f"several diffusion heads{at}: pass prefix, one of {choices}")
