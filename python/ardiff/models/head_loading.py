"""Heads from the tensors of published checkpoints, told apart by their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from ardiff.models.checkpoint import CheckpointError, check_tensors
from ardiff.models.head import DiffusionHead, Head
from ardiff.models.pocket_head import PocketHead
from ardiff.models.vibevoice_head import VibeVoiceHead

# A name that only this kind of head has, and the name of its input projection.
_KINDS = {
    "mar": ("final_layer.adaLN_modulation.1.weight", "input_proj.weight"),
    "vibevoice": ("final_layer.linear_1.weight", "noisy_images_proj.weight"),
    "pocket": ("final_layer.adaln_proj.weight", "input_proj.weight"),
}


def load_head(tensors: Mapping[str, Tensor], prefix: str | None = None, **options) -> Head:
    """A head with the tensors of a MAR (NextStep-1, NOVA), VibeVoice or Pocket-TTS checkpoint.

    Args:
        tensors: a state dict; of a whole model too, whose other tensors are left alone.
        prefix: of the head's names, such as `diffloss.net.`; None finds it.
        options: of the head's class (eps, flow_map, ...), where no tensor tells them.

    Returns:
        `DiffusionHead`, `VibeVoiceHead` or `PocketHead`, in the tensors' dtype, in eval mode,
        without gradients.

    Raises:
        CheckpointError: no head or several, tensors missing, unexpected or of wrong shapes.
    """
    kind, prefix = _find(tensors, prefix)
    own = {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
    named = f"the {kind} head{f' at {prefix}' if prefix else ''}"
    try:
        head = _MAKERS[kind](own, options)
    except KeyError as error:
        raise CheckpointError(f"{named} lacks {error.args[0]}; it is not whole") from None
    check_tensors(head, own, named)
    head.load_state_dict(own)
    return head.to(own[_KINDS[kind][1]].dtype).eval().requires_grad_(False)


def _find(tensors: Mapping[str, Tensor], prefix: str | None) -> tuple[str, str]:
    found = []
    for kind, (mark, projection) in _KINDS.items():
        for name in tensors:
            start = name.removesuffix(mark)
            if name.endswith(mark) and (not start or start.endswith(".")):
                if start + projection in tensors and prefix in (None, start):
                    found.append((kind, start))
    if len(found) == 1:
        return found[0]
    at = "" if prefix is None else f" at prefix {prefix!r}"
    if not found:
        raise CheckpointError(
            f"no diffusion head{at}: expected the names of MAR (input_proj, res_blocks, "
            "final_layer), VibeVoice (noisy_images_proj, layers, final_layer) or Pocket-TTS "
            "(input_proj, layers, final_layer)"
        )
    choices = ", ".join(sorted(start or "''" for _, start in found))
    raise CheckpointError(f"several diffusion heads{at}: pass prefix, one of {choices}")


def _depth(tensors: Mapping[str, Tensor], blocks: str) -> int:
    found = [re.match(rf"{blocks}\.(\d+)\.", name) for name in tensors]
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def _mar(t: Mapping[str, Tensor], options: dict) -> Head:
    width, dim = t["input_proj.weight"].shape
    context, out = t["cond_embed.weight"].shape[1], t["final_layer.linear.weight"].shape[0]
    return DiffusionHead(dim, context, width, _depth(t, "res_blocks"), out, **options)


def _vibevoice(t: Mapping[str, Tensor], options: dict) -> Head:
    width, dim = t["noisy_images_proj.weight"].shape
    context, features = t["cond_proj.weight"].shape[1], t["timestep_proj.fc1.weight"].shape[1]
    inner, depth = t["layers.0.ffn.gate_proj.weight"].shape[0], _depth(t, "layers")
    return VibeVoiceHead(dim, context, width, depth, inner, features=features, **options)


def _pocket(t: Mapping[str, Tensor], options: dict) -> Head:
    width, dim = t["input_proj.weight"].shape
    context, times = t["cond_proj.weight"].shape[1], _depth(t, "timestep_embeddings")
    if times:
        options = {"features": t["timestep_embeddings.0.fc1.weight"].shape[1], **options}
    return PocketHead(dim, context, width, _depth(t, "layers"), times=times, **options)


_MAKERS: dict[str, Callable[[Mapping[str, Tensor], dict], Head]] = {
    "mar": _mar,
    "vibevoice": _vibevoice,
    "pocket": _pocket,
}
